//! How many files this process may have open: connections must leave some for what is stored.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Allows as many open files as the system lets this process have, and says how many those are.
///
/// The usual soft limit of 1,024 is for programs that use `select`. With every file taken by connections the journal could
/// not begin a segment, and anyone who opens enough of them would stop the broker.
pub(crate) fn allow_all() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let allowed = if raised { maximum } else { current };
    // None stands for no limit.
    allowed.map_or(usize::MAX, |allowed| usize::try_from(allowed).unwrap_or(usize::MAX))
}

/// How many connections leave as many files for what they ask for and for the journal.
pub(crate) const fn connections_max(wanted: usize, open_files: usize) -> usize {
    let room = open_files / 2;
    if wanted < room { wanted } else { room }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        assert_eq!(connections_max(50_000, 1_048_576), 50_000);
        assert_eq!(connections_max(50_000, 1024), 512);
        assert_eq!(connections_max(2, 1024), 2);
        assert_eq!(connections_max(50_000, usize::MAX), 50_000);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        let allowed = allow_all();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(limit.current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap()), allowed);
    }
}
