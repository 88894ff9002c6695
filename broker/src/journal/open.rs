//! Opening a journal: the lock, the segments as they are, what was torn off, the store, and what it lacks.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use protocol::id::{Head, QueueKey};
use rustix::fs::{FlockOperation, flock};
use tracing::warn;

use super::ahead::Ahead;
use super::bodies::BODIES;
use super::config::JournalConfig;
use super::damage::{Quarantine, Quarantined};
use super::error::JournalError;
use super::events::{Progress, Store, StoreError};
use super::fill::{FillError, Filled, Scope, Starts, absent, fill};
use super::head;
use super::layout::{Layout, layout};
use super::report::OpenReport;
use super::scan::{self, Loss, Step, Touched, Walk};
use super::segment::{Appender, Hashed, SEGMENT_HEADER_BYTES, SEGMENTS, Segment, make_dir, sync_dir};
use super::snapshot::{SNAPSHOTS, Snapshots};

/// The folders of the store are named `events.` and a number; a new one has a new name, because what is left of a broken one may
/// still write to its own.
const EVENTS: &str = "events.";
const LOCK: &str = "lock";
/// How many folders above are synced: the data folder and the one it is in may be new, too.
const PARENTS_SYNCED: usize = 2;
/// How often and how long apart the lock is tried: a process that was just killed may still hold it for a moment.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A journal as it was found and mended.
pub(crate) struct Recovered {
    pub(crate) lock: File,
    pub(crate) appender: Appender,
    pub(crate) segments: Vec<Segment>,
    pub(crate) store: Store,
    pub(crate) progress: Progress,
    pub(crate) quarantine: Quarantine,
    pub(crate) report: OpenReport,
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |error| JournalError::io(what, error)
}

/// Takes the lock of the folder, or says who has it.
fn lock(data: &Path) -> Result<File, JournalError> {
    let path = data.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open.map_err(io_error("opening the lock file"))?;
    for _ in 0..LOCK_TRIES {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // Who holds it is a help for people, no more.
                let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
                return Ok(file);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(errno) => return Err(JournalError::io("locking the data folder", errno.into())),
        }
    }
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    Err(JournalError::InUse { dir: data.display().to_string(), holder: holder.trim().to_owned() })
}

/// Makes an empty store with the name after that of `path`.
pub(crate) fn make_store_after(path: &Path) -> Result<Store, StoreError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number: u64 = name.strip_prefix(EVENTS).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let next = path.with_file_name(format!("{EVENTS}{}", number + 1));
    // Something left of an earlier try.
    let _ = std::fs::remove_dir_all(&next);
    Store::open(&next)
}

/// A store that opened, how far it is filled, and where its queues stand.
type Opened = (Store, Progress, Vec<(QueueKey, Head)>);

/// Opens the newest store; the others are what is left of broken ones.
fn open_store(data: &Path) -> Result<(PathBuf, Result<Opened, StoreError>), JournalError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data).map_err(io_error("listing the data folder"))? {
        let entry = entry.map_err(io_error("listing the data folder"))?;
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_prefix(EVENTS)).and_then(|digits| digits.parse::<u64>().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort_unstable();
    let newest = found.pop().map_or_else(|| data.join(format!("{EVENTS}1")), |(_, path)| path);
    for (_, old) in found {
        if let Err(error) = std::fs::remove_dir_all(&old) {
            warn!("cannot remove what is left of a broken event store: {error}");
        }
    }
    let opened = Store::open(&newest).and_then(|store| {
        let (progress, heads) = (store.progress()?, store.heads()?);
        let records: u64 = heads.iter().map(|(_, head)| head.seq).sum();
        if records == progress.records {
            Ok((store, progress, heads))
        } else {
            Err(StoreError(format!("it has {records} records and should have {}", progress.records)))
        }
    });
    Ok((newest, opened))
}

/// The last segment, read through and its proven part hashed.
fn read_last(layout: &Layout) -> io::Result<Option<(Segment, scan::Last, Hashed)>> {
    let Some(segment) = layout.segments.last().cloned() else { return Ok(None) };
    let last = scan::last(&segment)?;
    let mut hashed = Hashed::default();
    hashed.extend(&File::open(&segment.path)?, last.proven)?;
    Ok(Some((segment, last, hashed)))
}

/// Cuts what was never acknowledged off the last segment; returns where it goes on.
fn mend_tail(
    data: &Path,
    layout: &mut Layout,
    last: Option<(Segment, scan::Last, Hashed)>,
    known: u64,
    report: &mut OpenReport,
) -> Result<Appender, JournalError> {
    let Some((last, read, hashed)) = last else {
        return Appender::create(data, 1, 0).map_err(io_error("making the first segment"));
    };
    let tail = read.tail(known);
    let damaged_header = layout.losses.iter().any(|loss| loss.segment == last.number && loss.offset == 0);
    if damaged_header && tail.end <= SEGMENT_HEADER_BYTES && known <= last.base + SEGMENT_HEADER_BYTES {
        // It was being made when the machine stopped; nothing was in it yet.
        layout.losses.retain(|loss| loss.segment != last.number);
        layout.segments.pop();
        std::fs::remove_file(&last.path).map_err(io_error("removing an unfinished segment"))?;
        report.torn_bytes += tail.end + tail.torn;
        return Appender::create(data, last.number, last.base).map_err(io_error("making a segment"));
    }
    if tail.torn > 0 {
        report.torn_bytes += tail.torn;
        let cut = OpenOptions::new().write(true).open(&last.path).and_then(|file| {
            file.set_len(tail.end)?;
            file.sync_all()
        });
        cut.map_err(io_error("cutting a torn write off"))?;
    }
    // What a killed broker wrote and had not synced is told from now on: it must be on disk first.
    let synced = File::open(&last.path).and_then(|file| file.sync_all());
    synced.map_err(io_error("syncing the last segment"))?;
    if tail.short > 0 {
        let what = format!("the log ends {} bytes before what was acknowledged", tail.short);
        layout.losses.push(Loss { segment: last.number, offset: tail.end, what, touched: Touched::Unknown });
    }
    let damaged = !tail.losses.is_empty() || damaged_header || tail.short > 0;
    layout.losses.extend(tail.losses);
    if tail.sealed {
        let base = last.base + tail.end;
        return Appender::create(data, last.number + 1, base).map_err(io_error("making a segment"));
    }
    let mut appender = Appender::resume(last, tail.frames, hashed).map_err(io_error("reading the last segment"))?;
    if damaged {
        // Nothing more goes into a damaged file.
        return Appender::create_after(&mut appender, data).map_err(io_error("making a segment"));
    }
    Ok(appender)
}

/// Opens what is in the folder, mends what can be mended, and says what was found.
pub(crate) fn recover(
    config: &JournalConfig,
    snapshots: &Arc<Snapshots>,
    ahead: &Arc<Ahead>,
) -> Result<Recovered, JournalError> {
    let data = config.dir.as_path();
    let starts = Starts { snapshots, ahead };
    for dir in ["", SEGMENTS, SNAPSHOTS, BODIES] {
        make_dir(&data.join(dir)).map_err(io_error("making the data folder"))?;
    }
    let lock = lock(data)?;
    sync_dir(data).map_err(io_error("syncing the data folder"))?;
    for parent in data.ancestors().skip(1).take(PARENTS_SYNCED) {
        // A folder that was just made is on disk when its parent is. One that may not be read was not made by us.
        let _ = sync_dir(parent);
    }
    let mut report = OpenReport::default();
    let mut layout = layout(data)?;
    // The store takes a core for as long as it opens; what else takes time is done meanwhile.
    let (last, opened) = thread::scope(|scope| {
        let reading = thread::Builder::new().name("journal-last".to_owned());
        let reading = reading.spawn_scoped(scope, || {
            let last = read_last(&layout);
            ahead.begin(snapshots);
            last
        });
        let reading = reading.map_err(io_error("starting a thread"))?;
        let opened = open_store(data);
        let last = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((last.map_err(io_error("reading the last segment"))?, opened?))
    })?;
    let (newest, opened) = opened;
    let (mut store, mut before) = (None, Vec::new());
    let last_seen = head::load(data);
    let mut known = last_seen.position;
    match opened {
        Ok((opened, progress, heads)) => {
            if progress.position == 0 && layout.segments.len() > 1 {
                report.rebuilt = Some("the event store was not there".to_owned());
            }
            known = known.max(progress.position);
            before = heads;
            if last_seen.machine_stopped() {
                report.rebuilt = Some("the machine stopped while the journal was open".to_owned());
                opened.abandon();
            } else {
                store = Some(opened);
            }
        }
        Err(error) => report.rebuilt = Some(error.to_string()),
    }
    let appender = mend_tail(data, &mut layout, last, known, &mut report)?;
    let Layout { mut segments, losses } = layout;
    if segments.last() != Some(appender.segment()) {
        segments.push(appender.segment().clone());
    }
    let end = appender.end();

    let quarantine = Quarantine::default();
    let mut found: Vec<Quarantined> = losses.iter().flat_map(Quarantined::of_loss).collect();
    let recalled = recheck(data, &segments, end)?;
    found.extend(recalled.still);
    quarantine.add(found);

    let skip = |queue| quarantine.of(queue).is_some();
    let mut filled = None;
    if let Some(opened) = store.take() {
        match try_fill(starts, opened, &segments, end, &skip) {
            Ok(done) => filled = Some(done),
            Err(error) => report.rebuilt = Some(error.to_string()),
        }
    }
    let (store, filled) = match filled {
        Some(done) => done,
        None => {
            // The broken one stays aside until the next start: its threads may still hold it.
            let store = make_store_after(&newest).map_err(FillError::Store);
            let made = store.and_then(|store| try_fill(starts, store, &segments, end, &skip));
            made.map_err(|error| JournalError::Store { text: error.to_string() })?
        }
    };
    quarantine.add(filled.broken.into_values().collect());
    let mut all_losses = losses;
    for loss in filled.losses {
        if !all_losses.contains(&loss) {
            all_losses.push(loss);
        }
    }
    if report.rebuilt.is_some() || all_losses.iter().any(|loss| loss.touched == Touched::Unknown) {
        let found = absent_queues(&store, &segments, end, &before, report.rebuilt.is_some())?;
        quarantine.add(found);
    }
    quarantine.remember(data).map_err(io_error("noting the quarantined queues"))?;
    // An end that is missing was told above; it must not be told of what is written from now on.
    head::save(data, end, false).map_err(io_error("noting where the log ends"))?;
    report.records = filled.progress.records;
    report.filled = filled.records;
    report.position = end;
    report.losses = all_losses;
    report.quarantined = quarantine.all();
    report.cleared = recalled.cleared;
    Ok(Recovered { lock, appender, segments, store, progress: filled.progress, quarantine, report })
}

/// Fills a store; one that is ahead of the segments is of another history.
fn try_fill(
    starts: Starts<'_>,
    store: Store,
    segments: &[Segment],
    end: u64,
    skip: &dyn Fn(QueueKey) -> bool,
) -> Result<(Store, Filled), FillError> {
    let result = match store.progress() {
        Ok(progress) if progress.position > end => {
            Err(FillError::Mismatch(format!("it is at {}, the segments end at {end}", progress.position)))
        }
        Ok(_) => fill(starts, &store, segments, end, Scope::Rest, skip),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(filled) => Ok((store, filled)),
        Err(error) => {
            store.abandon();
            Err(error)
        }
    }
}

/// The queues that are known to have been longer than they are, or to have gaps.
fn absent_queues(
    store: &Store,
    segments: &[Segment],
    end: u64,
    before: &[(QueueKey, Head)],
    rebuilt: bool,
) -> Result<Vec<Quarantined>, JournalError> {
    if !rebuilt {
        let heads = store.heads().map_err(|error| JournalError::Store { text: error.to_string() })?;
        return absent(segments, end, &heads).map_err(io_error("reading the segments"));
    }
    let mut found = Vec::new();
    for (queue, known) in before {
        let head = store.head(*queue).map_err(|error| JournalError::Store { text: error.to_string() })?;
        let seq = head.map_or(0, |head| head.seq);
        if seq < known.seq {
            found.push(Quarantined::absent(*queue, seq + 1, known.seq));
        }
    }
    Ok(found)
}

#[derive(Default)]
struct Recalled {
    still: Vec<Quarantined>,
    cleared: Vec<QueueKey>,
}

/// Looks again at what earlier runs found.
fn recheck(data: &Path, segments: &[Segment], end: u64) -> Result<Recalled, JournalError> {
    let mut recalled = Recalled::default();
    let all = Quarantine::recall(data);
    let (shown, lacking): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.segment != 0);
    for one in shown {
        let Some(segment) = segments.iter().find(|segment| segment.number == one.segment) else {
            recalled.still.push(one);
            continue;
        };
        if still_damaged(segment, one.queue).map_err(io_error("reading a segment"))? {
            recalled.still.push(one);
        } else {
            recalled.cleared.push(one.queue);
        }
    }
    if !lacking.is_empty() {
        let head = |one: &Quarantined| (one.queue, Head { seq: one.seq.unwrap_or(0), hash: one.queue.genesis() });
        let heads: Vec<_> = lacking.iter().map(head).collect();
        let absent = absent(segments, end, &heads).map_err(io_error("reading the segments"))?;
        for one in lacking {
            if absent.iter().any(|absent| absent.queue == one.queue) {
                recalled.still.push(one);
            } else {
                recalled.cleared.push(one.queue);
            }
        }
    }
    recalled.cleared.retain(|queue| recalled.still.iter().all(|one| one.queue != *queue));
    Ok(recalled)
}

fn still_damaged(segment: &Segment, queue: QueueKey) -> io::Result<bool> {
    let mut walk = Walk::new(segment, SEGMENT_HEADER_BYTES, u64::MAX)?;
    while let Some(step) = walk.step()? {
        if let Step::Loss(loss) = step
            && Quarantined::of_loss(&loss).iter().any(|one| one.queue == queue)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
