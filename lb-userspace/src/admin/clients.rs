//! A bounded set of clients being served.

use tokio::task::JoinSet;

/// At most `max` clients at once; the next one waits in the kernel's backlog until one is done. Dropping the set
/// ends all of them.
pub(super) struct Clients {
    tasks: JoinSet<()>,
    max: usize,
}

impl Clients {
    pub(super) fn new(max: usize) -> Self {
        Self { tasks: JoinSet::new(), max }
    }

    /// Waits until one more client may be served.
    pub(super) async fn room(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        while self.tasks.len() >= self.max {
            self.tasks.join_next().await;
        }
    }

    /// Serves one client. A panic ends this client only.
    pub(super) fn serve(&mut self, client: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_client_too_many_waits_until_one_is_done() {
        let mut clients = Clients::new(1);
        let (done, wait) = oneshot::channel::<()>();
        clients.room().await;
        clients.serve(async { _ = wait.await });
        tokio::select! {
            biased;
            () = clients.room() => panic!("no room yet"),
            () = tokio::task::yield_now() => done.send(()).unwrap(),
        }
        clients.room().await;
        assert!(clients.tasks.is_empty());
    }
}
