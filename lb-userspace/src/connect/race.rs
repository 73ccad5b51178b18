//! A race of attempts, of which the first success counts.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

/// Starts the attempts one after another: the next one when an attempt has failed, or when `delay` has passed since the
/// last one was started; then calls `silent` with that one's number. Returns the first success and drops the other
/// attempts, which close their sockets before they give back their ports. If none succeeds, returns the last error.
pub(super) async fn race<T, F: Future<Output = io::Result<T>>>(
    attempts: impl IntoIterator<Item = F>,
    delay: Duration,
    mut silent: impl FnMut(usize),
) -> io::Result<T> {
    let mut attempts = attempts.into_iter().enumerate().peekable();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        let begun = attempts.next();
        let newest = begun.as_ref().map(|(number, _)| *number);
        running.extend(begun.map(|(_, attempt)| Box::pin(attempt)));
        if running.is_empty() {
            return Err(last);
        }
        let any = poll_fn(|context| {
            for index in 0..running.len() {
                if let Poll::Ready(result) = running[index].as_mut().poll(context) {
                    drop(running.swap_remove(index));
                    return Poll::Ready(result);
                }
            }
            Poll::Pending
        });
        let ended = match attempts.peek() {
            Some(_) => tokio::time::timeout(delay, any).await.ok(),
            None => Some(any.await),
        };
        match (ended, newest) {
            (Some(Ok(value)), _) => return Ok(value),
            (Some(Err(error)), _) => last = error,
            (None, Some(number)) => silent(number),
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use std::rc::Rc;

    type Attempt = Pin<Box<dyn Future<Output = io::Result<u8>>>>;

    const LONG: Duration = Duration::from_secs(3600);

    fn run(attempts: Vec<Attempt>, delay: Duration) -> (io::Result<u8>, Vec<usize>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut silent = Vec::new();
        let result = runtime.block_on(race(attempts, delay, |number| silent.push(number)));
        (result, silent)
    }

    fn good(value: u8) -> Attempt {
        Box::pin(ready(Ok(value)))
    }

    fn refused() -> Attempt {
        Box::pin(ready(Err(io::ErrorKind::ConnectionRefused.into())))
    }

    #[test]
    fn the_first_that_succeeds_counts() {
        let (result, silent) = run(vec![good(1), good(2)], LONG);
        assert_eq!((result.unwrap(), silent), (1, vec![]));
    }

    #[test]
    fn one_that_fails_is_followed_at_once() {
        let (result, silent) = run(vec![refused(), refused(), good(3)], LONG);
        assert_eq!((result.unwrap(), silent), (3, vec![]));
    }

    #[test]
    fn one_that_is_silent_is_followed_after_the_delay() {
        let attempts: Vec<Attempt> = vec![Box::pin(pending()), refused(), Box::pin(pending()), good(4)];
        let (result, silent) = run(attempts, Duration::from_millis(1));
        assert_eq!((result.unwrap(), silent), (4, vec![0, 2]));
    }

    #[test]
    fn one_that_is_slow_may_still_win() {
        let slow = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(1)
        };
        let (result, silent) = run(vec![Box::pin(slow), Box::pin(pending())], Duration::from_millis(1));
        assert_eq!((result.unwrap(), silent), (1, vec![0]));
    }

    #[test]
    fn the_losers_are_dropped() {
        let alive = Rc::new(());
        let held = alive.clone();
        let loser = async move {
            pending::<()>().await;
            drop(held);
            Ok(0)
        };
        run(vec![Box::pin(loser), good(1)], Duration::from_millis(1)).0.unwrap();
        assert_eq!(Rc::strong_count(&alive), 1);
    }

    #[test]
    fn where_all_fail_the_last_failure_counts() {
        let timed_out = Box::pin(ready(Err(io::ErrorKind::TimedOut.into())));
        assert_eq!(run(vec![refused(), timed_out], LONG).0.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(run(vec![], LONG).0.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
