//! Which call is next: those that are due, by host, so that one slow host holds up nobody else.

use std::collections::{BTreeSet, HashMap};

use protocol::id::UnixMillis;

use super::call::CallId;

/// The calls that wait for their time.
#[derive(Debug)]
pub(super) struct Line {
    hosts: HashMap<Box<str>, Host>,
    /// The first call of each host that may have one more under way.
    ready: BTreeSet<(UnixMillis, Box<str>)>,
    under_way: usize,
    at_once_max: usize,
    per_host_max: usize,
}

#[derive(Debug, Default)]
struct Host {
    due: BTreeSet<(UnixMillis, CallId)>,
    under_way: usize,
}

impl Line {
    pub(super) fn new(at_once_max: usize, per_host_max: usize) -> Self {
        Self { hosts: HashMap::new(), ready: BTreeSet::new(), under_way: 0, at_once_max, per_host_max }
    }

    /// Changes a host, and keeps `ready` true.
    fn change<T>(&mut self, name: &str, change: impl FnOnce(&mut Host) -> T) -> T {
        let per_host_max = self.per_host_max;
        let ready = |host: &Host| host.due.first().filter(|_| host.under_way < per_host_max).map(|(at, _)| *at);
        let host = self.hosts.entry(name.into()).or_default();
        let before = ready(host);
        let value = change(host);
        let after = ready(host);
        let is_idle = host.due.is_empty() && host.under_way == 0;
        if is_idle {
            self.hosts.remove(name);
        }
        if before != after {
            before.map(|at| self.ready.remove(&(at, name.into())));
            after.map(|at| self.ready.insert((at, name.into())));
        }
        value
    }

    pub(super) fn add(&mut self, host: &str, at: UnixMillis, call: CallId) {
        self.change(host, |host| host.due.insert((at, call)));
    }

    pub(super) fn remove(&mut self, host: &str, at: UnixMillis, call: CallId) {
        self.change(host, |host| host.due.remove(&(at, call)));
    }

    /// The next call, which is under way from now on; `None` when none is due or none more may be.
    pub(super) fn take(&mut self, now: UnixMillis) -> Option<CallId> {
        let (at, name) = self.ready.first().filter(|_| self.under_way < self.at_once_max)?;
        if *at > now {
            return None;
        }
        let name = name.clone();
        self.under_way += 1;
        self.change(&name, |host| {
            host.under_way += 1;
            host.due.pop_first().map(|(_, call)| call)
        })
    }

    /// A call to that host is not under way any more.
    pub(super) fn done(&mut self, host: &str) {
        self.under_way = self.under_way.saturating_sub(1);
        self.change(host, |host| host.under_way = host.under_way.saturating_sub(1));
    }

    /// When [`Line::take`] has something to give; `None` before something changes.
    pub(super) fn next_at(&self) -> Option<UnixMillis> {
        self.ready.first().filter(|_| self.under_way < self.at_once_max).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::call::{HookId, Kind};
    use super::*;

    fn call(number: u8) -> CallId {
        CallId { hook: HookId::from_bytes([number; 16]), kind: Kind::Finished }
    }

    #[test]
    fn a_host_with_as_many_calls_as_it_may_have_is_passed_by() {
        let mut line = Line::new(3, 2);
        for number in 0..5 {
            line.add("slow", UnixMillis(0), call(number));
        }
        line.add("other", UnixMillis(7), call(9));
        let now = UnixMillis(10);
        assert_eq!([line.take(now), line.take(now), line.take(now)], [Some(call(0)), Some(call(1)), Some(call(9))]);
        assert_eq!((line.take(now), line.next_at()), (None, None), "as many as may be");
        line.done("other");
        assert_eq!((line.take(now), line.next_at()), (None, None), "what is left is the slow host's");
        line.done("slow");
        assert_eq!(line.take(now), Some(call(2)));
    }

    #[test]
    fn what_is_not_due_waits() {
        let mut line = Line::new(3, 2);
        line.add("a", UnixMillis(5), call(1));
        assert_eq!((line.take(UnixMillis(4)), line.next_at()), (None, Some(UnixMillis(5))));
        line.remove("a", UnixMillis(5), call(1));
        assert_eq!((line.take(UnixMillis(5)), line.next_at()), (None, None));
        assert!(line.hosts.is_empty(), "nothing stays of it");
    }

    proptest! {
        /// Whatever happens: no bound is passed, and whenever there is room for a call that is due, one is given.
        #[test]
        fn bounds_hold_and_nothing_is_forgotten(steps in proptest::collection::vec((0..3_u8, 0..4_u8, 0..9_u64), 1..80)) {
            let hosts = ["a", "b", "c", "d"];
            let mut line = Line::new(3, 2);
            let (mut due, mut under_way): (Vec<(usize, u64, u8)>, Vec<usize>) = (Vec::new(), Vec::new());
            for (number, (what, host, at)) in (0_u8..).zip(steps) {
                let host = usize::from(host);
                match what {
                    0 => {
                        line.add(hosts[host], UnixMillis(at), call(number));
                        due.push((host, at, number));
                    }
                    1 => if let Some(index) = under_way.iter().position(|of| *of == host) {
                        under_way.remove(index);
                        line.done(hosts[host]);
                    },
                    _ => {
                        let of = |host: usize| under_way.iter().filter(|of| **of == host).count();
                        let possible = under_way.len() < 3 && due.iter().any(|(host, due, _)| *due <= at && of(*host) < 2);
                        let taken = line.take(UnixMillis(at));
                        prop_assert_eq!(taken.is_some(), possible);
                        if let Some(taken) = taken {
                            let index = due.iter().position(|(_, _, number)| call(*number) == taken).unwrap();
                            under_way.push(due.remove(index).0);
                        }
                    }
                }
            }
        }
    }
}
