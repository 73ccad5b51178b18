//! An API server that objects are to come from in place of what is known: it is followed, and nothing is made of it, until all is
//! known that it has now. What is in force, or the process that is taken over, may serve more than was kept of it.

use super::ReloadRequest;
use super::aside::lend_aside;
use super::objects::Objects;
use super::shown;
use crate::config::File;
use crate::kubernetes::{ApiServer, Denial};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long it is waited for what an API server has now, and for what else a process that takes over has to know.
pub(super) const INFORMED: Duration = Duration::from_secs(10);
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// Follows the API server that these come from, and waits until they are what that has now, or for [`INFORMED`].
pub(super) async fn catch_up(file: File, mut objects: Objects) -> anyhow::Result<(File, Objects)> {
    objects.follow().await?;
    let deadline = Instant::now() + INFORMED;
    let mut source = (file, objects);
    loop {
        while !source.1.is_current() {
            if Instant::now() >= deadline {
                return Ok(source);
            }
            sleep(LOOK).await;
        }
        // A Secret, say, is asked for only when something names it.
        let (lent, made) = lend_aside(source, |(file, objects)| {
            objects.read();
            ((), objects.assemble(file))
        })
        .await;
        made.map_err(anyhow::Error::msg)?;
        source = lent;
        source.1.ask();
        if source.1.is_current() || Instant::now() >= deadline {
            return Ok(source);
        }
    }
}

/// A reload that waits for an API server.
pub(super) struct Prospect {
    /// One task, which ends with this value.
    task: JoinSet<anyhow::Result<Arc<ApiServer>>>,
    cause: &'static str,
    answer: Option<ReloadRequest>,
}

/// What became of it.
pub(super) struct Informed {
    pub(super) api: Result<Arc<ApiServer>, String>,
    pub(super) cause: &'static str,
    pub(super) answer: Option<ReloadRequest>,
}

impl Prospect {
    /// `file` names an API server that is not followed yet, in place of `before`.
    pub(super) fn new(
        (file, objects): (File, Objects),
        before: Option<Arc<ApiServer>>,
        cause: &'static str,
        answer: Option<ReloadRequest>,
    ) -> Self {
        let mut task = JoinSet::new();
        task.spawn(inform(file, objects, before));
        Self { task, cause, answer }
    }

    /// Returns when it does not have to wait any more.
    pub(super) async fn informed(prospect: &mut Option<Self>) -> Informed {
        let Some(waiting) = prospect else { return std::future::pending().await };
        let api = match waiting.task.join_next().await {
            Some(Ok(api)) => api.map_err(|error| format!("{error:#}")),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("it waits for nothing".to_owned()),
        };
        let Self { cause, answer, .. } = prospect.take().expect("it was there");
        Informed { api, cause, answer }
    }
}

async fn inform(
    file: File,
    objects: Objects,
    before: Option<Arc<ApiServer>>,
) -> anyhow::Result<Arc<ApiServer>> {
    let (_, objects) = catch_up(file, objects).await?;
    let api = objects.api_server().expect("a directory is not waited for");
    let denials = api.denials();
    if !objects.is_current() {
        let why: String =
            denials.first().map(|denial| format!(" ({})", shown::denied(denial))).unwrap_or_default();
        anyhow::bail!(
            "with `[gateway_api]` as it is now, the objects are to be had from the API server anew, and it has not given all of \
             them within {INFORMED:?}{why}: reload again when it answers"
        );
    }
    // As if there were none of these objects, but there were.
    if let Some(before) = before {
        let known: HashSet<_> = before.denials().into_iter().map(|denial| denial.kind).collect();
        let is_lost = |denial: &&Denial| before.follows(denial.kind) && !known.contains(&denial.kind);
        if let Some(denial) = denials.iter().find(is_lost) {
            anyhow::bail!(
                "with `[gateway_api]` as it is now, less would be known than before: {}; reload again when it may",
                shown::denied(denial)
            );
        }
    }
    Ok(api)
}
