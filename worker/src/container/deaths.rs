//! The ends of containers as the engine's events tell them: at once. Its answer to a wait comes only when it has also taken the
//! container's network down, 50 ms later on a calm machine and more on a busy one.
//!
//! Nothing depends on them: whoever waits asks the engine besides, so that one which is missed, or an engine that tells none,
//! costs that time and no more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::names::LABEL;
use crate::sync::lock;

/// How long after the engine's events broke off they are asked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// The containers whose ends somebody wants to know, with their exit codes once they ended. One is here from before its start until
/// it is removed.
type Expected = Mutex<HashMap<String, watch::Sender<Option<i64>>>>;

/// See the module. Listens as long as it lives.
#[derive(Debug)]
pub(super) struct Deaths {
    expected: Arc<Expected>,
    _listening: AbortOnDropHandle<()>,
}

impl Deaths {
    pub(super) fn listen(docker: Docker) -> Self {
        let expected: Arc<Expected> = Arc::default();
        let listening = tokio::spawn(listen(docker, Arc::clone(&expected)));
        Self { expected, _listening: AbortOnDropHandle::new(listening) }
    }

    /// From now on the end of that container is noted. To be asked for before its start.
    pub(super) fn expect(&self, container: &str) -> watch::Receiver<Option<i64>> {
        let mut expected = lock(&self.expected);
        expected.entry(container.to_owned()).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }

    /// The container is gone.
    pub(super) fn forget(&self, container: &str) {
        lock(&self.expected).remove(container);
    }
}

/// The exit code, once it is told; never, when it is not.
pub(super) async fn told(mut death: watch::Receiver<Option<i64>>) -> i64 {
    match death.wait_for(Option::is_some).await.map(|code| *code) {
        Ok(Some(code)) => code,
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

async fn listen(docker: Docker, expected: Arc<Expected>) {
    let filter = |name: &str, value: &str| (name.to_owned(), vec![value.to_owned()]);
    let filters = HashMap::from([filter("type", "container"), filter("event", "die"), filter("label", LABEL)]);
    loop {
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let mut events = Box::pin(docker.events(Some(options)));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => note(&expected, event),
                Err(error) => debug!("the container engine's events broke off: {error}"),
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn note(expected: &Expected, event: EventMessage) {
    let Some(actor) = event.actor else { return };
    let code = actor.attributes.as_ref().and_then(|attributes| attributes.get("exitCode")?.parse().ok());
    if let (Some("die"), Some(container), Some(code)) = (event.action.as_deref(), actor.id, code)
        && let Some(death) = lock(expected).get(&container)
    {
        death.send_replace(Some(code));
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::EventActor;
    use futures_util::FutureExt;

    use super::*;

    fn died(container: &str, code: &str) -> EventMessage {
        let attributes = HashMap::from([("exitCode".to_owned(), code.to_owned())]);
        let actor = EventActor { id: Some(container.to_owned()), attributes: Some(attributes) };
        EventMessage { action: Some("die".to_owned()), actor: Some(actor), ..EventMessage::default() }
    }

    fn deaths() -> Deaths {
        let listening = tokio::spawn(std::future::pending());
        Deaths { expected: Arc::default(), _listening: AbortOnDropHandle::new(listening) }
    }

    #[tokio::test]
    async fn an_end_is_known_to_whoever_asks_before_or_after_it() {
        let deaths = deaths();
        let (before, other) = (deaths.expect("a"), deaths.expect("b"));
        note(&deaths.expected, died("a", "3"));
        assert_eq!(told(before).await, 3);
        assert_eq!(told(deaths.expect("a")).await, 3);
        assert_eq!(told(other).now_or_never(), None, "another container's end is none of its business");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_and_what_is_gone_is_not_kept() {
        let deaths = deaths();
        note(&deaths.expected, died("stranger", "0"));
        let gone = deaths.expect("a");
        deaths.forget("a");
        note(&deaths.expected, died("a", "0"));
        assert!(lock(&deaths.expected).is_empty());
        assert_eq!(told(gone).now_or_never(), None);
    }

    #[tokio::test]
    async fn an_event_that_says_no_exit_code_is_left_to_the_wait() {
        let deaths = deaths();
        let death = deaths.expect("a");
        note(&deaths.expected, died("a", "soon"));
        note(&deaths.expected, EventMessage::default());
        assert_eq!(told(death).now_or_never(), None);
    }
}
