//! The examples in the documentation of the websocket are messages that are really sent: each is a frozen line.

const DOCUMENT: &str = include_str!("../../../docs/websocket.md");
const FROZEN: &str = include_str!("../fixtures/wire.txt");

/// The lines of all blocks of a kind.
fn examples(kind: &str) -> Vec<&'static str> {
    let mut examples = Vec::new();
    let mut of = None;
    for line in DOCUMENT.lines() {
        match (of, line.strip_prefix("```")) {
            (None, Some(kind)) => of = Some(kind),
            (Some(_), Some(_)) => of = None,
            (Some(found), None) if found == kind => examples.push(line),
            (Some(_) | None, None) => {}
        }
    }
    examples
}

fn frozen(encoding: &str) -> Vec<&'static str> {
    let line =
        |line: &'static str| line.split_once(' ').filter(|(name, _)| name.ends_with(encoding)).map(|(_, text)| text);
    FROZEN.lines().filter_map(line).collect()
}

#[test]
fn every_example_in_json_is_a_frozen_message() {
    let (examples, frozen) = (examples("json"), frozen(".json"));
    assert!(examples.len() > 10, "{}", examples.len());
    for example in examples {
        assert!(frozen.contains(&example), "not as it is sent: {example}");
    }
}

#[test]
fn every_example_in_bytes_is_a_frozen_message() {
    let (examples, frozen) = (examples("hex"), frozen(".messagepack"));
    assert!(!examples.is_empty());
    for example in examples {
        assert!(frozen.contains(&example.replace(' ', "").as_str()), "not as it is sent: {example}");
    }
}
