//! Requests that the API server refuses.

/// A request that is made over and over, and the status with which it was refused last: for want of a right (403), or of the
/// namespace that it names (404).
#[derive(Default)]
pub(super) struct Refused(Option<u16>);

impl Refused {
    /// Takes an outcome, and tells who reads the log. Whether it was refused, so that the API server is there.
    pub(super) fn tell<T>(&mut self, outcome: &Result<T, kube::Error>, what: &str) -> bool {
        let is_news = self.note(outcome);
        if let Err(error) = outcome {
            match is_news {
                true => tracing::warn!(%error, "{what}"),
                false => tracing::debug!(%error, "{what}"),
            }
        }
        outcome.as_ref().is_err_and(|error| code(error).is_some())
    }

    /// Whether an outcome is a refusal that an operator has not heard of since the request last succeeded.
    fn note<T>(&mut self, outcome: &Result<T, kube::Error>) -> bool {
        match outcome {
            Ok(_) => {
                self.0 = None;
                false
            }
            Err(error) => code(error).is_some_and(|code| self.0.replace(code) != Some(code)),
        }
    }
}

/// The status of a refusal.
pub(super) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(answer) => Some(answer.code).filter(|code| matches!(code, 403 | 404)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn answer(code: u16) -> Result<(), kube::Error> {
        if code == 200 {
            return Ok(());
        }
        Err(kube::Error::Api(Status::failure("", "").with_code(code).boxed()))
    }

    #[test]
    fn a_refusal_is_told_once_and_is_an_answer() {
        let mut refused = Refused::default();
        let told = [403, 403, 500, 403, 404, 404, 200, 404].map(|code| refused.note(&answer(code)));
        assert_eq!(told, [true, false, false, false, true, false, false, true]);
        let is_refused = [200, 401, 403, 404, 500, 503].map(|code| refused.tell(&answer(code), ""));
        assert_eq!(is_refused, [false, false, true, true, false, false]);
    }
}
