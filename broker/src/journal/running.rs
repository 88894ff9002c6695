//! The threads of an open journal, and its end.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use tracing::warn;

use super::error::JournalError;
use super::segment::Appender;
use super::shared::Shared;
use super::{head, index, scrub, writer};

/// A journal at work; dropping it closes it.
pub(crate) struct Running {
    shared: Arc<Shared>,
    /// `None` once it is closed.
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    lock: File,
    writer: JoinHandle<()>,
    index: JoinHandle<()>,
    scrub: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts the threads; `lock` is held until they have ended.
    pub(crate) fn start(shared: Arc<Shared>, lock: File, appender: Appender) -> Result<Self, JournalError> {
        let (to_index, groups) = mpsc::sync_channel(index::GROUPS_WAITING_MAX);
        let of_writer = Arc::clone(&shared);
        let writer = spawn("journal-writer", move || {
            let _ends = Ends { shared: &of_writer, who: "the writer" };
            writer::run(Arc::clone(&of_writer), appender, to_index);
        })?;
        let of_index = Arc::clone(&shared);
        let index = spawn("journal-index", move || {
            let _ends = (Ends { shared: &of_index, who: "the index" }, Marks(&of_index));
            index::run(&of_index, &groups);
        })?;
        let of_scrub = Arc::clone(&shared);
        let scrub = shared.config.scrub.then(|| {
            spawn("journal-scrub", move || match scrub::run(&of_scrub, true) {
                Ok(_) | Err(JournalError::Closed) => {}
                Err(error) => warn!("reading through the segments ended early: {error}"),
            })
        });
        let threads = Threads { lock, writer, index, scrub: scrub.transpose()? };
        Ok(Self { shared, threads: Mutex::new(Some(threads)) })
    }

    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Writes what waits, puts the event store on disk and lets go of the folder.
    pub(crate) fn close(&self) {
        let Some(threads) = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let shared = &self.shared;
        shared.closing.store(true, Ordering::Relaxed);
        shared.ahead.end();
        threads.scrub.as_ref().inspect(|scrub| scrub.thread().unpark());
        shared.inbox.end(JournalError::Closed, false);
        for thread in [Some(threads.writer), Some(threads.index), threads.scrub].into_iter().flatten() {
            if thread.join().is_err() {
                warn!("a thread of the journal ended unexpectedly");
            }
        }
        let mut closed = false;
        if let Some(store) = shared.take_store() {
            match store.flush() {
                Ok(()) => closed = true,
                Err(error) => warn!("{error}; it is made again at the next start"),
            }
            drop(store);
        }
        let end = shared.written.load(Ordering::Acquire);
        if let Err(error) = head::save(shared.data(), end, closed) {
            warn!("cannot note where the log ends: {error}");
        }
        drop(threads.lock);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, JournalError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map_err(|error| JournalError::io("starting a thread", error))
}

/// Stops everything when a thread ends without having been told to.
struct Ends<'a> {
    shared: &'a Shared,
    who: &'static str,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if self.shared.check().is_ok() {
            self.shared.fail(&format!("{} ended unexpectedly", self.who));
        }
    }
}

/// Frees those that wait for the index, however it ends.
struct Marks<'a>(&'a Shared);

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        self.0.end_marks();
    }
}
