//! Copies of requests for other pools. What comes of them is nobody's concern: the request and its client do not wait for them.

use super::body::{Arriving, Driver, Share};
use super::head::Head;
use super::link::Link;
use super::reach::{Connection, Reach};
use super::sent::{Sent, Source};
use super::upstream::Upstream;
use super::watch::Watched;
use crate::serving::Pool;
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Copies that a worker has under way; of more requests there are none.
const MOST: usize = 256;

/// How long one may take, with the body that it waits for.
const BOUND: Duration = Duration::from_secs(15);

thread_local! {
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

/// One copy under way.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let taken = UNDER_WAY.get();
        (taken < MOST).then(|| {
            UNDER_WAY.set(taken + 1);
            Place
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        UNDER_WAY.set(UNDER_WAY.get() - 1);
    }
}

/// Sends a copy of a request to a server of `pool`. The body is sent when all of it has come, if it was short enough to be kept.
pub(super) fn send(link: &Rc<Link>, pool: &Arc<Pool>, head: &Head, source: Option<&Rc<Source>>) {
    // To the client, what it sends in another protocol is not a request.
    let Some(place) = Place::take().filter(|_| head.upgrade.is_none()) else { return };
    let (link, pool, head, source) = (link.clone(), pool.clone(), head.clone(), source.cloned());
    tokio::task::spawn_local(async move {
        let _place = place;
        let watch = Watched::new();
        let copied = async {
            let body = match source {
                None => Sent::Empty,
                Some(source) => Sent::Whole(source.whole().await?),
            };
            copy(&link, &watch, &pool, head, body).await
        };
        tokio::select! {
            biased;
            _ = watch.broken_off() => {}
            _ = timeout(BOUND, copied) => {}
        }
    });
}

/// Asks one server, and reads its answer to the end.
async fn copy(link: &Link, watch: &Watched, pool: &Arc<Pool>, mut head: Head, body: Sent) -> Option<()> {
    let Connection { upstream, guard, epoch, .. } =
        Reach::new(link, pool, None, false, &[]).find().await.ok()?;
    watch.has_server(guard.server().clone(), epoch);
    let (answer, driver) = match upstream {
        Upstream::H1(mut h1) => {
            let answer = h1.send(head.take_http1(body)).await.ok()?;
            (answer, Driver::new(h1, guard, false))
        }
        Upstream::H2(mut h2) => {
            let stream = h2.stream();
            let answer = h2.send(head.take_http2(body, pool)?).await.ok()?;
            (answer, Driver::Shared(Share { stream, guard, upload: None }))
        }
    };
    let mut body = Arriving { incoming: answer.into_body(), driver };
    while poll_fn(|cx| body.poll_next(cx)).await?.is_ok() {}
    Some(())
}
