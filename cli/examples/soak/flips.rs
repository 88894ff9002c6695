//! `soak flips`: single bits of a store are flipped. In the segments: found, told where, the queues that it touches are not
//! served and all others are. In the event store: mended from the segments, nothing lost.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use broker::audit;
use broker::config::Config;
use broker::engine::SubmitJob;
use broker::journal::{Journal, JournalError};
use protocol::event::Via;
use protocol::id::{QueueKey, QueueName};

use crate::history::{self, Histories};
use crate::load::definition;
use crate::populate::{self, QUEUES, journal_config};
use crate::random::Random;
use crate::told::Told;

/// Bytes before the first frame of a segment.
const SEGMENT_HEADER_BYTES: u64 = 32;

/// Options of `soak flips`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many flips in the segments, and how many in the event store
    #[arg(long, default_value_t = 50)]
    flips: u32,
    /// The seed of all random choices [default: another each time]
    #[arg(long)]
    seed: Option<u64>,
}

/// What the store is like when nothing is wrong with it.
struct Lived {
    pristine: PathBuf,
    work: PathBuf,
    histories: Histories,
    told: Vec<Told>,
}

/// A flipped bit.
struct Flip {
    file: PathBuf,
    offset: u64,
}

/// Runs it; whether all was well.
pub(crate) async fn run(args: &Args) -> anyhow::Result<bool> {
    let seed = args.seed.unwrap_or_else(Random::seed);
    println!("flips: {} in segments and {} in the event store, seed {seed}", args.flips, args.flips);
    let dir = tempfile::tempdir()?;
    let (pristine, work) = (dir.path().join("pristine"), dir.path().join("work"));
    let (told, wrong) = populate::populate(&pristine, seed).await?;
    ensure!(wrong.is_empty(), "the store is bad before anything was flipped: {wrong:?}");
    let lived = tokio::task::spawn_blocking(move || Lived::of(pristine, work, told)).await??;
    let mut random = Random::new(seed);

    let (mut bad, mut touched) = (0, 0);
    for number in 1..=args.flips {
        lived.restore()?;
        let flip = lived.flip_segment(&mut random, number)?;
        match lived.segment_is_handled(&flip, &mut random).await {
            Ok(queues) => touched += usize::from(queues > 0),
            Err(error) => {
                bad += 1;
                println!("  flip {number}: {}: {error:#}", flip.place());
            }
        }
    }
    println!(
        "  segments: {} of {flips} found and handled; {touched} touched queues, which were not served",
        args.flips - bad,
        flips = args.flips
    );

    let (mut rebuilt, mut repaired, bad_segments) = (0, 0, bad);
    for number in 1..=args.flips {
        lived.restore()?;
        let flip = lived.flip_store(&mut random)?;
        // The store's own threads die loudly; what they say is no news here.
        let handled = tokio::task::block_in_place(|| lived.store_is_handled());
        match handled {
            Ok(Mended::Rebuilt) => rebuilt += 1,
            Ok(Mended::Repaired) => repaired += 1,
            Ok(Mended::NotNeeded) => {}
            Err(error) => {
                bad += 1;
                println!("  event store flip {number}: {}: {error:#}", flip.place());
            }
        }
    }
    let good = args.flips - (bad - bad_segments);
    println!(
        "  event store: {good} of {} handled; {rebuilt} made it again, {repaired} a queue of it, the others changed nothing",
        args.flips
    );
    println!("flips: {} and {}, seed {seed}: {bad} bad", args.flips, args.flips);
    Ok(bad == 0)
}

enum Mended {
    Rebuilt,
    Repaired,
    NotNeeded,
}

impl Flip {
    fn place(&self) -> String {
        format!("{} byte {}", self.file.display(), self.offset)
    }
}

impl Lived {
    fn of(pristine: PathBuf, work: PathBuf, told: Vec<Told>) -> anyhow::Result<Self> {
        let config = journal_config(&pristine);
        let histories = history::read(&config.dir)?;
        let (journal, _) = Journal::open(config)?;
        history::same_as_served(&journal, &histories)?;
        let wrong = history::check(&journal, &histories, &told);
        ensure!(wrong.is_empty(), "the store is bad before anything was flipped: {}", wrong[0]);
        let segments = journal.stats().segments;
        journal.close();
        let records: u64 = histories.values().map(|history| history.state.head().seq).sum();
        println!(
            "  {records} records of {} queues in {segments} segments, {} things told",
            histories.len(),
            told.len()
        );
        Ok(Self { pristine, work, histories, told })
    }

    fn restore(&self) -> anyhow::Result<()> {
        if self.work.exists() {
            fs::remove_dir_all(&self.work)?;
        }
        copy(&self.pristine, &self.work)
    }

    fn flip_segment(&self, random: &mut Random, number: u32) -> anyhow::Result<Flip> {
        let files = files(&self.work.join("journal").join("segments"))?;
        let (file, len) = any_byte(&files, random);
        // One in ten in a header, one in ten at the very end; the rest anywhere.
        let offset = match number % 10 {
            0 => random.between(0, SEGMENT_HEADER_BYTES),
            1 => len - 1 - random.between(0, 120),
            _ => random.between(SEGMENT_HEADER_BYTES, len),
        };
        flip(&file, offset, random)?;
        Ok(Flip { file, offset })
    }

    fn flip_store(&self, random: &mut Random) -> anyhow::Result<Flip> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.work.join("journal"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("events.") {
                found.extend(files(&entry.path())?);
            }
        }
        let (mut file, mut offset) = (PathBuf::new(), 0);
        // Much of its files is empty space, where a flip means nothing.
        for _ in 0..64 {
            let (chosen, len) = any_byte(&found, random);
            (file, offset) = (chosen, random.between(0, len));
            if byte_at(&file, offset)? != 0 {
                break;
            }
        }
        flip(&file, offset, random)?;
        Ok(Flip { file, offset })
    }

    /// How many queues the flip touches.
    async fn segment_is_handled(&self, flip: &Flip, random: &mut Random) -> anyhow::Result<usize> {
        let config = journal_config(&self.work);
        let flipped = fs::read(&flip.file)?;
        let report = audit::verify(&config.dir, None)?;
        let bad = report.first_bad.clone().context("audit verify finds nothing")?;
        ensure!(bad.file == flip.file, "audit verify names {}, byte {}: {}", bad.file.display(), bad.offset, bad.what);
        let named: BTreeSet<QueueKey> =
            report.queues.iter().filter(|queue| queue.first_bad.is_some()).map(|queue| queue.queue).collect();

        let opening = config.clone();
        let (journal, _) = tokio::task::spawn_blocking(move || Journal::open(opening)).await??;
        let kept = journal.clone();
        tokio::task::spawn_blocking(move || kept.scrub()).await??;
        let quarantined: BTreeSet<QueueKey> = journal.quarantined().into_iter().map(|one| one.queue).collect();
        ensure!(
            quarantined == named,
            "audit verify names the queues {named:?}, the broker keeps {quarantined:?} from being served"
        );
        // Headers, seals and the heads of groups hold nothing of a queue: then all of them must be whole.
        tokio::task::block_in_place(|| self.others_are_whole(&journal, &quarantined))?;
        self.others_go_on(journal, &quarantined, random).await?;

        let after = fs::read(&flip.file)?;
        ensure!(after.starts_with(&flipped), "the damaged segment was changed");
        let (journal, _) = tokio::task::spawn_blocking(move || Journal::open(config)).await??;
        let again: BTreeSet<QueueKey> = journal.quarantined().into_iter().map(|one| one.queue).collect();
        tokio::task::block_in_place(|| journal.close());
        ensure!(again == quarantined, "after another start {again:?} are not served, before it was {quarantined:?}");
        Ok(quarantined.len())
    }

    fn others_are_whole(&self, journal: &Journal, quarantined: &BTreeSet<QueueKey>) -> anyhow::Result<()> {
        for (queue, history) in &self.histories {
            let loaded = journal.load(*queue);
            if quarantined.contains(queue) {
                ensure!(matches!(loaded, Err(JournalError::Quarantined { .. })), "queue {} is served", queue.short());
            } else {
                ensure!(loaded?.hash() == history.state.hash(), "queue {} is served in another state", queue.short());
            }
        }
        let whole: Vec<Told> = self.told.iter().filter(|told| !quarantined.contains(&told.queue)).cloned().collect();
        let wrong = history::check(journal, &self.histories, &whole);
        ensure!(wrong.is_empty(), "{}", wrong[0]);
        Ok(())
    }

    /// A submission to each queue: taken, or refused with the reason. Closes the journal.
    async fn others_go_on(
        &self,
        journal: Journal,
        quarantined: &BTreeSet<QueueKey>,
        random: &mut Random,
    ) -> anyhow::Result<()> {
        let engine = populate::engine(&self.work, &Config::new(&self.work), journal).await?;
        for name in QUEUES {
            let name: QueueName = name.parse()?;
            let (definition, _) = definition(random, 100, &random.clone().next().to_string());
            let submit = SubmitJob {
                id: None,
                definition,
                namespace: None,
                priority: 0,
                debug: false,
                retry: false,
                callbacks: protocol::native::Callbacks::default(),
                via: Via::Http,
            };
            match (engine.queue(&name).submit(submit).await, quarantined.contains(&QueueKey::of(&name))) {
                (Ok(_), false) => {}
                (Err(refusal), true) if refusal.code == "quarantined" => {}
                (Ok(_), true) => anyhow::bail!("a damaged queue takes a job"),
                (Err(refusal), _) => anyhow::bail!("a submission was refused: {}: {}", refusal.code, refusal.message),
            }
        }
        engine.stop().await;
        Ok(())
    }

    /// How a flip in the event store was mended.
    fn store_is_handled(&self) -> anyhow::Result<Mended> {
        let config = journal_config(&self.work);
        let (journal, report) = Journal::open(config.clone())?;
        ensure!(
            report.losses.is_empty() && report.quarantined.is_empty(),
            "it is taken for damage of the segments: {report:?}"
        );
        history::same_as_served(&journal, &self.histories)?;
        let wrong = history::check(&journal, &self.histories, &self.told);
        ensure!(wrong.is_empty(), "{}", wrong[0]);
        let scrubbed = journal.scrub()?;
        ensure!(
            scrubbed.losses.is_empty() && journal.quarantined().is_empty(),
            "the scrub takes it for damage of the segments"
        );
        self.archives_are_whole(&journal)?;
        let stats = journal.stats();
        journal.close();
        let (journal, again) = Journal::open(config)?;
        history::same_as_served(&journal, &self.histories)?;
        journal.close();
        ensure!(again.rebuilt.is_none(), "it is made again at the next start, too: {:?}", again.rebuilt);
        Ok(if report.rebuilt.is_some() || stats.rebuilds > 0 {
            Mended::Rebuilt
        } else if stats.repairs > 0 {
            Mended::Repaired
        } else {
            Mended::NotNeeded
        })
    }

    /// Every job that was queued is in its queue, or kept.
    fn archives_are_whole(&self, journal: &Journal) -> anyhow::Result<()> {
        for (queue, history) in &self.histories {
            for job in history.jobs() {
                let kept = history.state.job(job).is_some() || journal.archived(*queue, job)?.is_some();
                ensure!(kept, "job {job} of queue {} is neither in its queue nor kept", queue.short());
                ensure!(journal.retained(job)?.contains(queue), "job {job} is not found without its queue");
            }
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, target) = (entry?, to);
        let target = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// All files below a folder that are not empty, with their lengths.
fn files(dir: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else if entry.metadata()?.len() > 0 {
            found.push((entry.path(), entry.metadata()?.len()));
        }
    }
    found.sort();
    Ok(found)
}

/// One of the files, each as likely as it is long.
fn any_byte(files: &[(PathBuf, u64)], random: &mut Random) -> (PathBuf, u64) {
    let total: u64 = files.iter().map(|(_, len)| len).sum();
    let mut at = random.between(0, total.max(1));
    for (file, len) in files {
        if at < *len {
            return (file.clone(), *len);
        }
        at -= len;
    }
    unreachable!("the lengths add up")
}

fn byte_at(file: &Path, offset: u64) -> anyhow::Result<u8> {
    let mut byte = [0];
    fs::File::open(file)?.read_exact_at(&mut byte, offset)?;
    Ok(byte[0])
}

fn flip(file: &Path, offset: u64, random: &mut Random) -> anyhow::Result<()> {
    let byte = byte_at(file, offset)? ^ (1 << random.between(0, 8));
    fs::OpenOptions::new().write(true).open(file)?.write_all_at(&[byte], offset)?;
    Ok(())
}
