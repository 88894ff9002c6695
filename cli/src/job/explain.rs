//! Why a job stands where it stands, for people: pure.

use protocol::definition::Needs;
use protocol::explain::{AHEAD_COUNTED_MAX, Estimate, Explanation, Fit, Lack, Line, Resource, Standing, WorkerFit};

use super::ls::{table, utc};
use crate::progress::one_line;

/// How many workers the table shows: more do not fit a screen, and the first ones are the best.
const WORKERS_SHOWN_MAX: usize = 20;

/// The explanation: the reason first, then the place in line, the workers, and a guess when.
pub(super) fn for_people(explanation: &Explanation) -> String {
    let mut parts = vec![reason(explanation)];
    parts.extend(explanation.line.as_ref().map(|line| place(line, explanation)));
    if !explanation.workers.is_empty() {
        parts.push(workers(explanation));
    }
    parts.extend(explanation.estimate.as_ref().map(estimate));
    parts.join("\n\n")
}

fn reason(explanation: &Explanation) -> String {
    let standing = match explanation.standing {
        Standing::Unknown => "unknown",
        Standing::Waiting => "waiting",
        Standing::Running => "running",
        Standing::Finished => "finished",
        Standing::Abandoned => "given up",
        Standing::Cancelled => "cancelled",
        Standing::Replaced => "replaced",
        Standing::Deleted => "deleted",
    };
    let since = explanation.since_ms.map_or_else(String::new, |at| format!("since {} UTC", utc(at.0)));
    let mut text = format!("{standing}: {}", one_line(&explanation.reason));
    let run = match (explanation.run, &explanation.worker) {
        (0, _) => String::new(),
        (run, Some(worker)) => format!("run {run}, on worker {}", one_line(worker.as_str())),
        (run, None) => format!("run {run}"),
    };
    let lost = match explanation.lost {
        0 => String::new(),
        1 => "1 run lost".to_owned(),
        lost => format!("{lost} runs lost"),
    };
    let said: Vec<_> = [since, run, lost].into_iter().filter(|text| !text.is_empty()).collect();
    if !said.is_empty() {
        text.push('\n');
        text.push_str(&said.join("; "));
    }
    text
}

fn place(line: &Line, explanation: &Explanation) -> String {
    let ahead = |count: u64| match count {
        AHEAD_COUNTED_MAX.. => format!("at least {AHEAD_COUNTED_MAX} jobs"),
        1 => "1 job".to_owned(),
        count => format!("{count} jobs"),
    };
    let in_namespace = match line.ahead_in_namespace {
        count if count == line.ahead => String::new(),
        count => format!(", {count} of them in namespace {}", one_line(line.namespace.as_str())),
    };
    let mut rows = table_without_header();
    rows.add_row(["in line", &format!("{} before it{in_namespace}; {} waiting", ahead(line.ahead), line.waiting)]);
    rows.add_row(["priority", &line.priority.to_string()]);
    rows.add_row(["needs", &needs(&line.needs)]);
    let workers = match explanation.workers_total {
        0 => "none".to_owned(),
        count => count.to_string(),
    };
    rows.add_row(["workers", &workers]);
    rows.trim_fmt()
}

fn table_without_header() -> comfy_table::Table {
    let mut rows = comfy_table::Table::new();
    rows.load_style(comfy_table::presets::NOTHING);
    rows
}

fn needs(needs: &Needs) -> String {
    // What a job takes that says nothing.
    let mut parts = vec![amount(Resource::CpusMilli, needs.cpus_milli.unwrap_or(1000).into())];
    parts.extend(needs.memory_bytes.map(|bytes| format!("{} memory", amount(Resource::MemoryBytes, bytes))));
    if needs.gpus > 0 {
        parts.push(amount(Resource::Gpus, needs.gpus.into()));
    }
    if !needs.tags.is_empty() {
        let tags: Vec<_> = needs.tags.iter().map(|tag| one_line(tag)).collect();
        parts.push(format!("tag {}", tags.join(" or ")));
    }
    parts.extend(needs.max_duration_ms.map(|ms| format!("at most {}", span(ms))));
    parts.join(", ")
}

fn workers(explanation: &Explanation) -> String {
    let mut rows = table(&["WORKER", "TAKES IT", "WHY"]);
    for worker in explanation.workers.iter().take(WORKERS_SHOWN_MAX) {
        rows.add_row([one_line(worker.id.as_str()).into_owned(), takes(worker.fit).to_owned(), why(worker)]);
    }
    let shown = explanation.workers.len().min(WORKERS_SHOWN_MAX);
    let mut text = rows.trim_fmt();
    match usize::try_from(explanation.workers_total).unwrap_or(usize::MAX).saturating_sub(shown) {
        0 => {}
        more => text.push_str(&format!("\n… and {more} more; --json names up to 100")),
    }
    text
}

const fn takes(fit: Fit) -> &'static str {
    match fit {
        Fit::Now => "now",
        Fit::Held | Fit::Later => "later",
        Fit::HeldForOthers | Fit::HandedBack | Fit::Silent => "not now",
        Fit::Never => "never",
    }
}

fn why(worker: &WorkerFit) -> String {
    let why = match worker.fit {
        Fit::Now => Some("has room"),
        Fit::Held => Some("kept free for it"),
        Fit::HeldForOthers => Some("kept for jobs waiting longer"),
        Fit::HandedBack => Some("handed it back; asked later"),
        Fit::Silent => Some("is silent"),
        Fit::Later | Fit::Never => None,
    };
    let lacks = worker.lacks.iter().map(|lack| lacking(lack, worker.fit));
    why.map(str::to_owned).into_iter().chain(lacks).collect::<Vec<_>>().join("\n")
}

/// `needs 2 GPUs, has 0`.
fn lacking(lack: &Lack, fit: Fit) -> String {
    match lack.what {
        Resource::Tags if lack.needs == 0 => "takes only jobs with its tags".to_owned(),
        Resource::Tags => "has none of its tags".to_owned(),
        Resource::CpusMilli | Resource::MemoryBytes | Resource::Gpus => {
            let needs = amount(lack.what, lack.needs);
            let plain = |count| match lack.what {
                Resource::CpusMilli => cpus(count),
                Resource::Gpus => count.to_string(),
                Resource::MemoryBytes | Resource::Tags => amount(lack.what, count),
            };
            match fit {
                Fit::Never => format!("needs {needs}, has {}", plain(lack.total)),
                Fit::Now | Fit::Held | Fit::Later | Fit::HeldForOthers | Fit::HandedBack | Fit::Silent => {
                    format!("needs {needs}, {} free", plain(lack.free))
                }
            }
        }
    }
}

fn amount(what: Resource, count: u64) -> String {
    let noun = |one: &str, count: &str| if count == "1" { format!("1 {one}") } else { format!("{count} {one}s") };
    match what {
        Resource::CpusMilli => noun("CPU", &cpus(count)),
        Resource::Gpus => noun("GPU", &count.to_string()),
        Resource::Tags => noun("tag", &count.to_string()),
        Resource::MemoryBytes => indicatif::HumanBytes(count).to_string(),
    }
}

/// Thousandths as people write them: `2`, `0.5`.
fn cpus(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn estimate(estimate: &Estimate) -> String {
    let starts = match estimate.starts_in_ms {
        0 => "may start at any moment".to_owned(),
        ms => format!("may start in about {}", span(ms)),
    };
    let runs = match estimate.runs {
        1 => "the last run took".to_owned(),
        runs => format!("half of the last {runs} runs took at most"),
    };
    let slots = match estimate.slots {
        1 => "1 such job runs".to_owned(),
        slots => format!("{slots} such jobs run"),
    };
    format!("{starts}\n({runs} {}; {slots} at once)", span(estimate.median_run_ms))
}

/// A span of time, to two digits or so.
fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> String {
        for_people(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_waiting_job_shows_its_place_what_workers_lack_and_a_guess() {
        let text = of(&format!(
            r#"{{"job":"{}","standing":"waiting","reason":"2 workers could run it and are busy.","since_ms":1793793600000,"run":1,"lost":1,
            "line":{{"ahead":12,"ahead_in_namespace":4,"namespace":"alice","waiting":240,"priority":5,
                "needs":{{"cpus_milli":2500,"memory_bytes":4294967296,"gpus":2,"tags":["a","b"],"max_duration_ms":90000}}}},
            "workers":[
                {{"id":"76ecb12f-3ec8-40e2-a0e9-28f83c57fa24","fit":"later","lacks":[{{"what":"cpus_milli","needs":2500,"free":500,"total":4000}},
                    {{"what":"memory_bytes","needs":4294967296,"free":1073741824,"total":8589934592}}]}},
                {{"id":"w2","fit":"never","lacks":[{{"what":"gpus","needs":2,"free":0,"total":0}},{{"what":"tags","needs":2,"free":0,"total":1}}]}},
                {{"id":"w3","fit":"silent"}}],
            "workers_total":25,"estimate":{{"starts_in_ms":200000,"median_run_ms":40500,"runs":25,"slots":4}}}}"#,
            "0".repeat(64)
        ));
        let expected = "\
waiting: 2 workers could run it and are busy.
since 2026-11-04 12:00:00 UTC; run 1; 1 run lost

 in line   12 jobs before it, 4 of them in namespace alice; 240 waiting
 priority  5
 needs     2.5 CPUs, 4.00 GiB memory, 2 GPUs, tag a or b, at most 1 min 30 s
 workers   25

 WORKER                                TAKES IT  WHY
 76ecb12f-3ec8-40e2-a0e9-28f83c57fa24  later     needs 2.5 CPUs, 0.5 free
                                                 needs 4.00 GiB, 1.00 GiB free
 w2                                    never     needs 2 GPUs, has 0
                                                 has none of its tags
 w3                                    not now   is silent
… and 22 more; --json names up to 100

may start in about 3 min 20 s
(half of the last 25 runs took at most 40.5 s; 4 such jobs run at once)";
        assert_eq!(text, expected, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "it fits a terminal");
    }

    #[test]
    fn an_ended_job_is_a_sentence() {
        let text = of(&format!(
            r#"{{"job":"{}","standing":"finished","reason":"it ended with exit code 0\u001b[2J","run":2,"worker":"w1"}}"#,
            "0".repeat(64)
        ));
        assert_eq!(text, "finished: it ended with exit code 0\u{fffd}[2J\nrun 2, on worker w1");
    }

    #[test]
    fn spans_and_cpus_are_written_as_people_do() {
        let spans = [(0, "0 ms"), (1_250, "1.2 s"), (61_000, "1 min 1 s"), (7_260_000, "2 h 1 min")];
        assert!(spans.iter().all(|(ms, text)| span(*ms) == *text));
        assert_eq!([1000, 500, 1250, 0].map(cpus), ["1", "0.5", "1.25", "0"]);
    }
}
