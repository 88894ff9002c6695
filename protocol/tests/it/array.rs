//! Job arrays: what a template makes, and what it refuses to.

use proptest::prelude::*;
use protocol::array::{ARRAY_JOBS_MAX, ArrayError, Indices, Template};
use protocol::canonical::job_id;
use protocol::json::{self, Value};

fn value(text: &str) -> Value {
    json::parse(text.as_bytes()).unwrap()
}

fn indices(text: &str) -> Result<Indices, ArrayError> {
    Indices::read(&value(text))
}

fn template(array: &str, definition: &str) -> Result<Template, ArrayError> {
    Template::new(indices(array)?, value(definition))
}

/// The definitions that come out, as JSON.
fn made(array: &str, definition: &str) -> Vec<String> {
    let template = template(array, definition).unwrap();
    template.indices().iter().map(|index| json::to_json(&template.definition(index).unwrap())).collect()
}

#[test]
fn each_number_takes_the_placeholders_place_in_texts_and_file_names() {
    let definition = r#"{"image":"a","command":["x","{{i}}-{{i}}"],"env":{"N":"{{i}}","{{i}}":"key"},
        "inputs":{"part-{{i}}.txt":{"type":"utf8","value":"number {{i}}"}},"configFiles":{"/c{{i}}":{"value":"{{ i }}"}},
        "requirements":{"cpus":2.0}}"#;
    assert_eq!(
        made(r#"{"from":3,"to":8,"step":5,"index":"i"}"#, definition),
        [3, 8].map(|i| format!(
            concat!(
                r#"{{"image":"a","command":["x","{i}-{i}"],"env":{{"N":"{i}","{{{{i}}}}":"key"}},"#,
                r#""inputs":{{"part-{i}.txt":{{"type":"utf8","value":"number {i}"}}}},"configFiles":{{"/c{i}":{{"value":"{{{{ i }}}}"}}}},"#,
                r#""requirements":{{"cpus":2}}}}"#
            ),
            i = i
        ))
    );
}

#[test]
fn the_range_is_from_0_in_steps_of_1_called_index_unless_said_otherwise() {
    assert_eq!(made(r#"{"to":2}"#, r#"{"command":"{{index}}"}"#).len(), 3);
    assert_eq!(
        indices(r#"{"from":0,"to":9,"step":4}"#).unwrap().iter().collect::<Vec<_>>(),
        [0, 4, 8],
        "the end is not passed"
    );
    assert_eq!(indices(r#"{"to":9999}"#).unwrap().count(), ARRAY_JOBS_MAX);
    assert_eq!(indices(r#"{"to":9007199254740991,"step":9007199254740991}"#).unwrap().count(), 2);
}

#[test]
fn a_job_of_an_array_is_the_job_that_is_written_by_hand() {
    // Keys that JavaScript moves, numbers that it rewrites, and text that is no text.
    let template = template(
        r#"{"from":7,"to":8,"index":"n"}"#,
        r#"{"command":"{{n}}\ud800","inputs":{"b":{"value":1e400},"{{n}}":{"value":"x"},"2":{"value":1.50}},"maxDuration":1E2}"#,
    )
    .unwrap();
    let by_hand =
        r#"{"maxDuration":100,"inputs":{"2":{"value":1.5},"7":{"value":"x"},"b":{"value":null}},"command":"7\ud800"}"#;
    let made = template.definition(7).unwrap();
    assert_eq!(job_id(&made), job_id(&value(by_hand)));
    assert_eq!(job_id(&value(&json::to_json(&made))), job_id(&value(by_hand)), "also after it was written and read");
}

#[test]
fn what_makes_no_array_is_refused_with_the_rule() {
    let command = r#"{"command":"{{index}}"}"#;
    let cases = [
        ("7", command, "must be an object"),
        ("{}", command, "array.to must be"),
        (r#"{"to":-1}"#, command, "array.to must be"),
        (r#"{"to":1.5}"#, command, "array.to must be"),
        (r#"{"to":"9"}"#, command, "array.to must be"),
        (r#"{"to":9007199254740992}"#, command, "array.to must be"),
        (r#"{"to":9,"step":0}"#, command, "array.step must be a whole number from 1"),
        (r#"{"from":9,"to":8}"#, command, "from is 9"),
        (r#"{"to":10000}"#, command, "10001 jobs, the limit is 10000"),
        (r#"{"to":9007199254740991}"#, command, "the limit is 10000"),
        (r#"{"to":9,"stp":2}"#, command, "no field \"stp\""),
        (r#"{"to":9,"index":""}"#, command, "must be a name"),
        (r#"{"to":9,"index":"a b"}"#, command, "must be a name"),
        (r#"{"to":9,"index":"1a"}"#, command, "must be a name"),
        (r#"{"to":9,"index":7}"#, command, "must be a name"),
        (r#"{"to":9}"#, "[]", "must be a JSON object, not array"),
        (r#"{"to":9}"#, r#"{"command":"{{i}}"}"#, "{{index}} stands in no text"),
        (r#"{"to":9}"#, r#"{"{{index}}":"key"}"#, "{{index}} stands in no text"),
        (r#"{"to":9}"#, r#"{"command":"x","env":{"mp-x":"{{index}}"}}"#, "does not change a job's id"),
    ];
    for (array, definition, words) in cases {
        let refused = template(array, definition).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains(words), "{array} {definition}: {refused}");
    }
    let large = format!(r#"{{"command":"{{{{index}}}}{}"}}"#, "x".repeat(8000));
    assert!(template(r#"{"to":8000}"#, &large).is_ok());
    assert!(matches!(template(r#"{"to":9999}"#, &large), Err(ArrayError::TooLarge { .. })));
}

#[test]
fn two_files_of_one_name_are_refused_where_they_meet() {
    let template = template(r#"{"to":2}"#, r#"{"inputs":{"f2":{"value":"a"},"f{{index}}":{"value":"b"}}}"#).unwrap();
    assert!(template.definition(1).is_ok());
    assert_eq!(template.definition(2), Err(ArrayError::SameName { field: "inputs", name: "f2".to_owned() }));
}

#[test]
fn a_command_line_writes_a_range() {
    assert_eq!(Indices::parse_range("0-99"), indices(r#"{"to":99}"#));
    assert_eq!(Indices::parse_range("5-99:2"), indices(r#"{"from":5,"to":99,"step":2}"#));
    for bad in ["", "9", "-", "1-", "-1", "1-2:", "1-2:x", "+1-2", "1-2-3", "1 - 2", "99999999999999999999-1"] {
        assert_eq!(Indices::parse_range(bad), Err(ArrayError::BadRange), "{bad}");
    }
    assert!(Indices::parse_range("1-2:0").is_err());
    assert!(Indices::parse_range("2-1").is_err());
}

proptest! {
    #[test]
    fn an_array_reads_back_and_its_jobs_are_all_different(from in 0_u64..1 << 50, count in 1_u64..50, step in 1_u64..1000) {
        let indices = Indices::new(from, from + count * step - 1, step, "i").unwrap();
        prop_assert_eq!(indices.count(), count);
        prop_assert_eq!(&Indices::read(&indices.to_value()).unwrap(), &indices);
        let template = Template::new(indices, value(r#"{"command":"{{i}}"}"#)).unwrap();
        let ids: std::collections::BTreeSet<_> =
            template.indices().iter().map(|index| job_id(&template.definition(index).unwrap())).collect();
        prop_assert_eq!(ids.len() as u64, count);
    }
}
