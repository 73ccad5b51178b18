//! The watches of what some object asks for, which begin and end with that.

use std::collections::{HashMap, HashSet};
use std::future::Future;

use tokio::task::{AbortHandle, JoinSet};

use super::scope::Scope;

/// Tasks of a runtime; they end with this value.
#[derive(Default)]
pub(super) struct Asked {
    watches: HashMap<Scope, AbortHandle>,
    tasks: JoinSet<()>,
}

impl Asked {
    /// Ends the watches that nobody wants any more, and begins those that are new.
    pub(super) fn set<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        wanted: HashSet<Scope>,
        forget: impl Fn(&Scope),
        follow: impl Fn(&Scope) -> F,
    ) {
        // Those that were ended before: the set keeps a task until it is asked for.
        while self.tasks.try_join_next().is_some() {}
        self.watches.retain(|scope, watch| {
            let is_wanted = wanted.contains(scope);
            if !is_wanted {
                watch.abort();
                forget(scope);
            }
            is_wanted
        });
        for scope in wanted {
            self.watches.entry(scope).or_insert_with_key(|scope| self.tasks.spawn(follow(scope)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway_api::Kind;

    #[tokio::test]
    async fn watches_that_have_ended_leave_nothing_behind() {
        let mut asked = Asked::default();
        let scope = |number: usize| Scope {
            kind: Kind::Secret,
            namespace: Some("db".into()),
            name: Some(number.to_string().into()),
        };
        let forgotten = std::cell::Cell::new(0);
        for number in 0..1000 {
            let wanted = [scope(number), scope(number + 1)].into();
            asked.set(wanted, |_| forgotten.set(forgotten.get() + 1), |_| std::future::pending());
            tokio::task::yield_now().await;
        }
        assert_eq!(forgotten.get(), 999);
        assert_eq!(asked.watches.keys().cloned().collect::<HashSet<_>>(), [scope(999), scope(1000)].into());
        // One that was ended last is there for as long as nothing else is asked for.
        assert!(asked.tasks.len() <= 3, "{} tasks", asked.tasks.len());
    }
}
