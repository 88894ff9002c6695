//! `gridsocket doctor`: looks, and tells people (or programs) what a worker would meet here.

use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use serde_json::json;
use worker::doctor::{Finding, Level, examine};

use crate::args::doctor::Settings;
use crate::exit;
use crate::progress::{Counter, one_line, print};

/// Where the second column begins.
const CHECK_AT: usize = 6;
/// And the third: the longest name of a check, and a gap.
const TEXT_AT: usize = CHECK_AT + 17;
/// Lines on a terminal that is not wide enough for a column are left to it.
const TEXT_CHARS_MIN: usize = 24;
/// Longer lines are hard to read, however wide the terminal is.
const LINE_CHARS_MAX: usize = 110;

/// Looks at everything, tells it, and ends with 1 if a worker does not work so.
pub(crate) async fn doctor(settings: Settings) -> anyhow::Result<ExitCode> {
    let waiting = Counter::start();
    waiting.set(|| "looking at this machine, its container engine and the broker".to_owned());
    let mut findings = examine(&settings.worker, settings.listen.is_none()).await;
    findings.extend(settings.listen.map(about_port));
    drop(waiting);
    let is_well = findings.iter().all(|finding| finding.level != Level::Fail);
    if settings.is_json {
        print(&serde_json::to_string_pretty(&json!({ "ok": is_well, "findings": findings }))?)?;
    } else {
        let is_terminal = std::io::stdout().is_terminal();
        let width = comfy_table::Table::new().width().filter(|_| is_terminal).map(usize::from);
        print(&as_text(&findings, width, is_terminal && !settings.is_plain))?;
    }
    Ok(ExitCode::from(if is_well { exit::OK } else { exit::FAILED }))
}

/// Whether local mode could listen.
fn about_port(address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok("port", format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Finding::fail(
            "port",
            format!("something listens at {address} already"),
            "if that is `gridsocket local`, all is well; else choose another with --port",
        ),
        Err(error) => Finding::fail(
            "port",
            format!("nothing can listen at {address}: {error}"),
            "choose another with --port, or --listen",
        ),
    }
}

/// For people: a line for each, wrapped where the width is known.
fn as_text(findings: &[Finding], width: Option<usize>, has_colour: bool) -> String {
    let mut lines: Vec<String> = findings.iter().map(|finding| line(finding, width, has_colour)).collect();
    lines.push(String::new());
    lines.push(conclusion(findings, width));
    lines.join("\n")
}

fn line(finding: &Finding, width: Option<usize>, has_colour: bool) -> String {
    let (word, colour) = match finding.level {
        Level::Ok => ("ok", 32),
        Level::Warn => ("warn", 33),
        Level::Fail => ("FAIL", 31),
    };
    let gap = " ".repeat(CHECK_AT - word.len());
    let word = if has_colour { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
    let indent = format!("\n{}", " ".repeat(TEXT_AT));
    let column = |text: &str| wrapped(&one_line(text), width, TEXT_AT).join(&indent);
    let advice = finding.advice.as_deref().map(|advice| format!("{indent}{}", column(&format!("-> {advice}"))));
    let (check, seen) = (finding.check, column(&finding.seen));
    format!("{word}{gap}{check:<width$}{seen}{}", advice.unwrap_or_default(), width = TEXT_AT - CHECK_AT)
}

fn conclusion(findings: &[Finding], width: Option<usize>) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let some = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let text = match (count(Level::Fail), count(Level::Warn)) {
        (0, 0) => "All is well: a worker works here.".to_owned(),
        (0, warnings) => format!("{}: a worker works here, but not everything will.", some(warnings, "warning")),
        (failures, 0) => format!("{}: a worker does not work here until that is mended.", some(failures, "failure")),
        (failures, warnings) => format!(
            "{} and {}: a worker does not work here until the former are mended.",
            some(failures, "failure"),
            some(warnings, "warning")
        ),
    };
    wrapped(&text, width, 0).join("\n")
}

/// The lines of a text in what is left of the width behind a column; a word that is longer stays whole, so that it can be copied.
fn wrapped(text: &str, width: Option<usize>, from: usize) -> Vec<String> {
    let room = width.map(|width| width.min(LINE_CHARS_MAX).saturating_sub(from)).filter(|room| *room >= TEXT_CHARS_MIN);
    let Some(room) = room else { return vec![text.to_owned()] };
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        let seen = "version 20.10.24 at unix:///var/run/docker.sock: Debian GNU/Linux 12, x86_64, 4 CPUs, 16 GiB";
        vec![Finding::ok("engine", seen), Finding::warn("registry logins", "one\x1b[2J two", "do this")]
    }

    #[test]
    fn on_a_terminal_no_line_is_longer_than_it_and_columns_stand() {
        let text = as_text(&findings(), Some(60), false);
        assert_eq!(
            text,
            "\
ok    engine           version 20.10.24 at
                       unix:///var/run/docker.sock: Debian
                       GNU/Linux 12, x86_64, 4 CPUs, 16 GiB
warn  registry logins  one\u{fffd}[2J two
                       -> do this

1 warning: a worker works here, but not everything will."
        );
        assert!(text.lines().all(|line| line.chars().count() <= 60));
    }

    #[test]
    fn elsewhere_each_text_is_one_line_without_colours() {
        let text = as_text(&findings(), None, false);
        assert!(text.lines().next().unwrap().ends_with("16 GiB") && !text.contains('\x1b'));
        assert!(as_text(&findings(), None, true).starts_with("\x1b[32mok\x1b[0m    engine"));
    }

    #[test]
    fn the_end_says_whether_a_worker_works() {
        let fail = || Finding::fail("disk", "full", "make room");
        assert!(conclusion(&[fail()], None).starts_with("1 failure:"));
        assert!(conclusion(&[fail(), fail(), findings().remove(1)], None).starts_with("2 failures and 1 warning:"));
        assert!(conclusion(&[Finding::ok("disk", "free")], None).starts_with("All is well"));
    }

    #[test]
    fn a_port_that_is_taken_is_told() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(about_port(taken.local_addr().unwrap()).level, Level::Fail);
        assert_eq!(about_port("127.0.0.1:0".parse().unwrap()).level, Level::Ok);
    }
}
