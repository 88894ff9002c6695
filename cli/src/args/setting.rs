//! One rule for every option: its flag, else its variable, else its default; and one way to refuse a value.
//!
//! The environment comes in as a function, so that the rule is tested without touching the process's own. A variable that
//! is set to nothing counts as not set: that is how compose files pass on what they do not have.

use std::fmt;

/// Reads one environment variable.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads this process's environment.
pub(crate) fn process_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// An option that cannot be used: which one, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub(crate) struct UsageError {
    /// The flag, variable or argument, as the user wrote it.
    pub(crate) place: String,
    /// The rule that the value breaks, and a value that would do.
    pub(crate) problem: String,
}

impl UsageError {
    pub(crate) fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

/// Where an option's value may come from.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    flag: &'static str,
    variable: Option<&'static str>,
    given: Option<&'a str>,
}

/// An option with its flag as given.
pub(crate) fn setting<'a>(flag: &'static str, given: Option<&'a str>, variable: &'static str) -> Setting<'a> {
    Setting { flag, variable: Some(variable), given }
}

/// An option that has no variable.
pub(crate) fn flag_only<'a>(flag: &'static str, given: Option<&'a str>) -> Setting<'a> {
    Setting { flag, variable: None, given }
}

impl Setting<'_> {
    /// The flag's value, else the variable's, read by `parse`.
    pub(crate) fn find<T, E: fmt::Display>(
        self,
        env: Env<'_>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, UsageError> {
        let (place, text) = match (self.given, self.variable) {
            (Some(given), _) => (self.flag.to_owned(), given.to_owned()),
            (None, Some(variable)) => match env(variable).filter(|value| !value.trim().is_empty()) {
                Some(value) => (variable.to_owned(), value.trim().to_owned()),
                None => return Ok(None),
            },
            (None, None) => return Ok(None),
        };
        parse(&text).map(Some).map_err(|problem| UsageError::new(place, with_value(&text, &problem.to_string())))
    }

    /// As [`Setting::find`], with a default.
    pub(crate) fn or<T, E: fmt::Display>(
        self,
        env: Env<'_>,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, UsageError> {
        Ok(self.find(env, parse)?.unwrap_or(default))
    }
}

/// What is wrong with a value, which is said once.
fn with_value(text: &str, problem: &str) -> String {
    let quoted = format!("{text:?}");
    if problem.starts_with(&quoted) { problem.to_owned() } else { format!("{quoted}: {problem}") }
}

/// Reads `true` or `false`, and the other spellings that people use.
pub(crate) fn truth(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("write true or false"),
    }
}

/// Reads a TCP port; 0 lets the system choose.
pub(crate) fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| "a port is a number from 0 to 65535, such as 8000")
}

/// Reads a base address: `http(s)://host[:port][/prefix]`, one trailing slash dropped.
pub(crate) fn base_url(text: &str) -> Result<String, &'static str> {
    const RULE: &str = "write an address such as http://localhost:8000";
    let url = reqwest::Url::parse(text).map_err(|_| RULE)?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || url.cannot_be_a_base() {
        return Err(RULE);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("an address has no ? or # part; write one such as http://localhost:8000");
    }
    Ok(text.strip_suffix('/').unwrap_or(text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Result<u32, std::num::ParseIntError> {
        text.parse()
    }

    #[test]
    fn the_flag_wins_over_the_variable_and_the_variable_over_the_default() {
        let set = |name: &str| (name == "N").then(|| "2".to_owned());
        assert_eq!(setting("--n", Some("1"), "N").or(&set, 3, number), Ok(1));
        assert_eq!(setting("--n", None, "N").or(&set, 3, number), Ok(2));
        assert_eq!(setting("--n", None, "M").or(&set, 3, number), Ok(3));
        assert_eq!(flag_only("--n", None).or(&set, 3, number), Ok(3));
    }

    #[test]
    fn a_variable_set_to_nothing_counts_as_not_set() {
        assert_eq!(setting("--n", None, "N").or(&|_| Some("  ".into()), 3, number), Ok(3));
    }

    #[test]
    fn a_refusal_names_the_place_that_the_value_came_from() {
        let set = |_: &str| Some("x".to_owned());
        let from_flag = setting("--n", Some("y"), "N").or(&set, 3, number).unwrap_err();
        assert_eq!(from_flag.place, "--n");
        let from_variable = setting("--n", None, "N").or(&set, 3, number).unwrap_err();
        assert_eq!(from_variable.to_string(), "N: \"x\": invalid digit found in string");
        let named = |text: &str| Err::<u32, _>(format!("{text:?} is no number"));
        let once = setting("--n", Some("y"), "N").or(&set, 3, named).unwrap_err();
        assert_eq!(once.to_string(), "--n: \"y\" is no number");
    }

    #[test]
    fn a_base_address_has_a_scheme_and_loses_one_slash() {
        assert_eq!(base_url("http://a:1/"), Ok("http://a:1".into()));
        assert_eq!(base_url("https://a/grid"), Ok("https://a/grid".into()));
        for bad in ["localhost:8000", "ftp://a", "a", "", "http://", "http://a?x=1", "http://a#b"] {
            assert!(base_url(bad).is_err(), "{bad}");
        }
    }
}
