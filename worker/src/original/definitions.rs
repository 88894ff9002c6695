//! Definitions: asked for one by one and side by side, only those of jobs that may be taken; checked against the job's id, and
//! kept for a while.

use std::collections::{BTreeMap, HashMap};

use protocol::definition::{Definition, Needs};
use protocol::id::JobId;
use protocol::raw::RawJson;

/// How many may be on their way: enough to fill a large worker in a few round trips.
pub(super) const ASKED_MAX: usize = 32;
/// How long an answer is waited for; the original's workers wait as long.
const ANSWER_MS: u64 = 12_000;
/// How long after having asked in vain it is asked for again.
const AGAIN_MS: u64 = 30_000;
/// How many are remembered that were asked for in vain, or are not what they claim to be.
const VAIN_MAX: usize = 4_096;
/// Of how many it is remembered what they need, so that those that wait for room are not fetched again and again.
const NEEDS_MAX: usize = 16_384;
/// How many are kept, and of how many bytes: jobs that wait their turn are seen again with each message.
const KEPT_MAX: usize = 256;
const KEPT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A definition that its job's id stands for.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) text: RawJson,
    pub(super) needs: Needs,
}

/// What there is of a job's definition.
#[derive(Debug)]
pub(super) enum Lookup {
    Known(Known),
    /// Asked for, so many milliseconds ago.
    Pending(u64),
    /// It cannot be had, for now or ever.
    Missing,
    /// Nobody has asked.
    Unasked,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    known: HashMap<JobId, (u64, Known)>,
    bytes: usize,
    needs: HashMap<JobId, Needs>,
    /// Counts the look-ups, to know which was used last.
    uses: u64,
    /// When it was asked for; answered ones are not in here.
    asked: BTreeMap<JobId, u64>,
    /// When something else came instead.
    forged: BTreeMap<JobId, u64>,
}

impl Definitions {
    /// Another connection begins: nothing is on its way any more.
    pub(super) fn reconnected(&mut self) {
        self.asked.clear();
    }

    /// What a job needs whose definition was seen, also if that is not kept.
    pub(super) fn needs(&self, job: JobId) -> Option<&Needs> {
        self.needs.get(&job)
    }

    pub(super) fn look_up(&mut self, job: JobId, now_ms: u64) -> Lookup {
        self.uses += 1;
        if let Some((used, known)) = self.known.get_mut(&job) {
            *used = self.uses;
            return Lookup::Known(known.clone());
        }
        if self.forged.get(&job).is_some_and(|since| now_ms.saturating_sub(*since) < AGAIN_MS) {
            return Lookup::Missing;
        }
        match self.asked.get(&job).map(|asked| now_ms.saturating_sub(*asked)) {
            Some(waited) if waited < ANSWER_MS => Lookup::Pending(waited),
            Some(waited) if waited < AGAIN_MS => Lookup::Missing,
            Some(_) | None => Lookup::Unasked,
        }
    }

    /// Notes that it is asked for now; `false` when too many are on their way.
    pub(super) fn ask(&mut self, job: JobId, now_ms: u64) -> bool {
        let pending = self.asked.values().filter(|asked| now_ms.saturating_sub(**asked) < ANSWER_MS).count();
        if pending >= ASKED_MAX {
            return false;
        }
        if self.asked.len() >= VAIN_MAX {
            self.asked.retain(|_, asked| now_ms.saturating_sub(*asked) < ANSWER_MS);
        }
        self.asked.insert(job, now_ms);
        true
    }

    /// Takes in what the server sent. Only what was asked for: it sends each to all workers. Says what is wrong with it.
    pub(super) fn answer(&mut self, job: JobId, text: &str, now_ms: u64) -> Result<(), String> {
        if self.asked.remove(&job).is_none() {
            return Ok(());
        }
        let read = Definition::parse(text.as_bytes()).map_err(|error| error.to_string());
        let read = read.and_then(|read| match read.job_id() == job {
            true => Ok(read.needs()),
            false => Err("it is not the one that the job's id stands for".to_owned()),
        });
        let needs = match read {
            Ok(needs) => needs,
            Err(why) => {
                if self.forged.len() >= VAIN_MAX {
                    self.forged.clear();
                }
                self.forged.insert(job, now_ms);
                return Err(why);
            }
        };
        if self.needs.len() >= NEEDS_MAX {
            self.needs.clear();
        }
        self.needs.insert(job, needs.clone());
        self.uses += 1;
        self.bytes += text.len();
        self.known.insert(job, (self.uses, Known { text: RawJson::new(text), needs }));
        while self.known.len() > 1 && (self.known.len() > KEPT_MAX || self.bytes > KEPT_BYTES_MAX) {
            let Some(oldest) = self.known.iter().min_by_key(|(_, (used, _))| *used).map(|(job, _)| *job) else { break };
            self.forget(oldest);
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, job: JobId) {
        if let Some((_, known)) = self.known.remove(&job) {
            self.bytes -= known.text.as_str().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: usize) -> (JobId, String) {
        let text = format!(r#"{{"image":"i","command":"echo {number}"}}"#);
        (Definition::parse(text.as_bytes()).unwrap().job_id(), text)
    }

    #[test]
    fn only_what_was_asked_for_and_is_what_its_id_says_is_kept() {
        let mut definitions = Definitions::default();
        let ((one, text), (_, other)) = (job(1), job(2));
        definitions.answer(one, &text, 0).unwrap();
        assert!(matches!(definitions.look_up(one, 0), Lookup::Unasked));
        assert!(definitions.ask(one, 0));
        assert!(definitions.answer(one, &other, 5).is_err());
        assert!(matches!(definitions.look_up(one, 6), Lookup::Missing));
        assert!(definitions.ask(one, AGAIN_MS + 5));
        assert!(matches!(definitions.look_up(one, AGAIN_MS + 6), Lookup::Pending(1)));
        definitions.answer(one, &text, AGAIN_MS + 7).unwrap();
        let Lookup::Known(known) = definitions.look_up(one, 0) else { panic!() };
        assert_eq!(known.text.as_str(), text);
    }

    #[test]
    fn few_are_on_their_way_and_one_that_does_not_come_is_asked_for_again_later() {
        let mut definitions = Definitions::default();
        assert!((0..ASKED_MAX).all(|number| definitions.ask(job(number).0, 0)));
        let last = job(ASKED_MAX).0;
        assert!(!definitions.ask(last, ANSWER_MS - 1));
        assert!(matches!(definitions.look_up(job(0).0, ANSWER_MS), Lookup::Missing));
        assert!(definitions.ask(last, ANSWER_MS));
        assert!(matches!(definitions.look_up(job(0).0, AGAIN_MS), Lookup::Unasked));
    }

    #[test]
    fn the_one_that_was_not_used_for_longest_goes() {
        let mut definitions = Definitions::default();
        for number in 0..=KEPT_MAX {
            let (id, text) = job(number);
            // The first is used again and again.
            definitions.look_up(job(0).0, 0);
            assert!(definitions.ask(id, 0));
            definitions.answer(id, &text, 0).unwrap();
        }
        assert!(matches!(definitions.look_up(job(0).0, 0), Lookup::Known(_)));
        assert!(matches!(definitions.look_up(job(1).0, 0), Lookup::Unasked));
        let bytes: usize = definitions.known.values().map(|(_, known)| known.text.as_str().len()).sum();
        assert_eq!(definitions.bytes, bytes);
    }
}
