//! Which of two workers keeps a job that both claimed: the one whose id sorts first.
//!
//! Both ends apply the rule, theirs with JavaScript's `localeCompare`, so both must sort alike. For printable ASCII that order
//! is small enough to write down; ids with other characters do not register.

use std::cmp::Ordering;

use crate::id::WorkerId;

/// Printable ASCII as the root collation orders it. Letters differ by case only when nothing else does.
const ORDER: &[u8] = b" _-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$0123456789abcdefghijklmnopqrstuvwxyz";

/// Put before the id of a worker whose runs are not up to this rule, as workers are shown it: it sorts before any id that may
/// register, so that whoever sees it lets go.
pub const FIRST: char = ' ';

/// Whether a worker of this id can be compared as its own end compares it, and cannot pass for one that is shown to sort first.
#[must_use]
pub fn may_register(id: &str) -> bool {
    !id.is_empty() && !id.starts_with(FIRST) && id.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

/// How workers are shown one whose runs are not up to the rule.
#[must_use]
pub fn shown_first(id: &WorkerId) -> String {
    format!("{FIRST}{id}")
}

/// Whether `one` goes before `other`: `one.localeCompare(other) < 0`. Other characters than printable ASCII come last, by byte.
#[must_use]
pub fn goes_before(one: &str, other: &str) -> bool {
    let weights = one.bytes().map(weight).cmp(other.bytes().map(weight));
    // Of two that differ only in case the lower goes first.
    let upper = |text: &str| text.bytes().map(|byte| byte.is_ascii_uppercase()).collect::<Vec<_>>();
    weights.then_with(|| upper(one).cmp(&upper(other))) == Ordering::Less
}

fn weight(byte: u8) -> usize {
    ORDER.iter().position(|known| *known == byte.to_ascii_lowercase()).unwrap_or(ORDER.len() + usize::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sorted by a JavaScript engine (ICU 78, root collation).
    const SORTED: [&str; 14] = [" x", "_a", "-b", "0", "10", "2", "a", "a ", "a_b", "a-b", "ab", "aB", "Ab", "ac"];

    #[test]
    fn ids_sort_as_javascript_sorts_them() {
        for (at, one) in SORTED.iter().enumerate() {
            for (later, other) in SORTED.iter().enumerate() {
                assert_eq!(goes_before(one, other), at < later, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn what_is_shown_first_goes_before_every_id_that_may_register() {
        let all = (0x20..0x7f_u8).map(|byte| char::from(byte).to_string()).filter(|id| may_register(id));
        let shown = shown_first(&"~native".parse().unwrap());
        assert!(all.into_iter().all(|id| goes_before(&shown, &id)));
        assert!(!may_register(&shown));
        assert!(!may_register("é") && !may_register("") && may_register("Worker 1"));
    }
}
