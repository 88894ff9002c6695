//! Job ids and JSON against what a JavaScript engine makes of the same text, and the properties behind them.

use proptest::prelude::*;
use protocol::canonical::{canonical_json, job_id};
use protocol::json::{
    self, DEPTH_MAX, JsString, JsonErrorKind, Object, Value, number_to_string, to_canonical_json, to_json,
};
use serde_json::Value as Line;

const JOB_IDS: &str = include_str!("../vectors/job_ids.jsonl");
const JSON: &str = include_str!("../vectors/json.jsonl");

fn lines(file: &str) -> Vec<Line> {
    file.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn id_of(definition: &str) -> String {
    job_id(&json::parse(definition.as_bytes()).expect("JSON")).to_string()
}

#[test]
fn every_generated_definition_has_the_id_that_javascript_gives_it() {
    let lines = lines(JOB_IDS);
    assert!(lines.len() >= 300);
    for line in lines {
        let text = line["definition_text"].as_str().unwrap();
        let definition = json::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error} in {text:?}"));
        assert_eq!(canonical_json(&definition), line["canonical"].as_str().unwrap(), "for {text:?}");
        assert_eq!(job_id(&definition).to_string(), line["id"].as_str().unwrap(), "for {text:?}");
    }
}

#[test]
fn json_is_accepted_refused_and_written_as_in_javascript() {
    let lines = lines(JSON);
    assert!(lines.iter().filter(|line| line["refused"] == true).count() >= 100);
    for line in lines {
        let text = line["text"].as_str().unwrap();
        match json::parse(text.as_bytes()) {
            Ok(value) => {
                assert_eq!(line["stringified"].as_str(), Some(to_json(&value).as_str()), "for {text:?}");
                assert_eq!(line["canonical"].as_str(), Some(to_canonical_json(&value).as_str()), "for {text:?}");
            }
            Err(error) => {
                assert_eq!(line["refused"], true, "{error} in {text:?}");
                assert!(error.offset <= text.len());
            }
        }
    }
}

#[test]
fn the_worked_examples_of_the_broker_contract_keep_their_ids() {
    assert_eq!(id_of("{}"), "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
    assert_eq!(
        id_of(r#"{"image":"alpine:3.20","command":"echo hello"}"#),
        "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4"
    );
    assert_eq!(
        id_of(
            r#"{"command":"python /inputs/main.py","image":"python:3.12-slim","v":1,"workdir":"","tags":[],
            "env":{"ZED":"1","alpha":"2","mp-channel":"abc","channel":"x","readonly":"true","MP_USER":"kept"},
            "inputs":{"main.py":{"type":"utf8","value":"print('héllo')\n","hash":"ignored"},
                      "data/10.csv":{"type":"url","value":"https://example.org/f/abc/presignedurl/sig?X=1"},
                      "data/2.csv":{"value":"inline","type":null}},
            "configFiles":{},"build":{},"requirements":{"gpus":1,"cpus":null},"entrypoint":null,"unknownField":{"a":1}}"#
        ),
        "d66238ba44c7462a93420e34adefba0cec8fb8a8ba89b90b62894cdb293052e3"
    );
    assert_eq!(
        id_of(
            r##"{"build":{"dockerfile":"FROM alpine:3.20\nRUN echo \"hi\"\t#x","buildArgs":["A=1","B=2"],"platform":"linux/amd64","context":null,"extra":1},
            "maxDuration":"10m","requirements":{"memory":"4g","maxDuration":"1h","cpus":2.5},
            "inputs":{"p.json":{"type":"json","value":{"b":[1,null,1e21,-0],"10":true,"2":"\u2028\ud83d\ude00","a":{}}}},
            "configFiles":{"/etc/app.conf":{"type":"base64","value":"aGVsbG8="}},"env":{}}"##
        ),
        "ff77c69cd3e98a3cd9abb13957ca5d6f4333275cbf25ac0db6cbb77f662b34ef"
    );
}

#[test]
fn the_vectors_of_the_client_contract_keep_their_ids() {
    let vectors = [
        ("", "b2945c2a30797a2443a06e588e13e544a21ca513bdc6e2ab2b002f81a1774d6e"),
        (r#","workdir":"""#, "4e98912d8311daab7395dedab8d40b1856d98dfe144106a875b7fc7b328f134e"),
        (
            r#","env":{"10":"a","9":"b","Z":"c","a":"d"}"#,
            "90e7e66c1610d5bad42dd788e6e3c6ea36e374c4465277c65413ac143daa7042",
        ),
        (
            r#","inputs":{"p.json":{"type":"json","value":{"n":1e21,"z":0.1,"a":[1,null,true]}}}"#,
            "aacc59be00bab523ca09c16bdd30d80a23d4520d4d9a3bfdc1bb13900c50dad8",
        ),
        (r#","requirements":{"gpus":1}"#, "c1ad94bf9685fc314424b1c347d9682d0e89229fdfa3dcc15b72f6998445e097"),
        (
            r#","inputs":{"a":{"type":"url","value":"https://h/f/abc/presignedurl/zzz?x=1","hash":"q"}}"#,
            "614229fa6617e9bc9e8bd365963a8c46730cc008f61e658f274f049c99fb38ae",
        ),
        (
            r#","inputs":{"a":{"type":"url","value":"https://h/f/abc"}}"#,
            "614229fa6617e9bc9e8bd365963a8c46730cc008f61e658f274f049c99fb38ae",
        ),
        (
            r#","configFiles":{"f.txt":{"type":"url","value":"https://container.mtfm.io/f/a92efd82109373e58f9a2056dee01e807e216ce6075f7051207c0a9f7d666e50"}}"#,
            "5ec87151902c49f13278824382fe8412f5388939827ce5fb02b8ebcf17cd753d",
        ),
        (
            r#","configFiles":{"f.txt":{"type":"url","value":"http://localhost:8000/f/a92efd82109373e58f9a2056dee01e807e216ce6075f7051207c0a9f7d666e50"}}"#,
            "04e3c14cc537a606df1f76b66a88bbc4ccb703dfe0e43a5d77b4d9a9254d1d7e",
        ),
    ];
    for (rest, id) in vectors {
        assert_eq!(id_of(&format!(r#"{{"image":"alpine","command":"true"{rest}}}"#)), id, "for {rest}");
    }
}

#[test]
fn the_example_links_of_the_client_contract_keep_their_ids() {
    let seed = r#"{"command":"python -c 'print(\"help\")'","image":"python:3.12.1-alpine3.19"}"#;
    assert_eq!(id_of(seed), "07e6c0de0a9f4db4c80955a419055aea59ee57b85a3279239b06970e1efc3da4");
    let with_env = seed.replace(
        r#","image"#,
        r#","env":{"command":"cHl0aG9uIC1jICdwcmludCgiaGVscCIpJw%253D%253D","image":"python%253A3.8.8-alpine3.13"},"image"#,
    );
    assert_eq!(id_of(&with_env), "0e43af301efde5067c447c76b6d62220324da99d61f8e7ede84efe16c36e6996");
    assert_eq!(
        id_of(r#"{"command":"echo \"hello world\"","image":"alpine:3.19.1"}"#),
        "9a684c59f4270fa102f102d2aafe92d5e78ad285116f02d845e5dabbfb0ba873"
    );
    assert_eq!(
        id_of(
            r#"{"command":"sh /inputs/go.sh v2","image":"alpine:3.20","env":{"TAG":"v2"},"configFiles":{"go.sh":{"type":"utf8","value":"echo hi $1"}}}"#
        ),
        "59999fe2276aeeee4f48d9a7ace30ced1a10cf38d65b7b81a1f488b3aa8a263b"
    );
}

#[test]
fn depth_is_bounded_and_the_bound_is_reached() {
    let nested = |depth| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert!(json::parse(&nested(DEPTH_MAX)).is_ok());
    let error = json::parse(&nested(DEPTH_MAX + 1)).unwrap_err();
    assert_eq!((error.offset, error.kind), (DEPTH_MAX, JsonErrorKind::Depth));
    assert_eq!(json::parse(&vec![b'['; 10_000_000]).unwrap_err().kind, JsonErrorKind::Depth);
    let objects = [br#"{"a":"#.repeat(DEPTH_MAX + 1), vec![b'1'], vec![b'}'; DEPTH_MAX + 1]].concat();
    assert_eq!(json::parse(&objects).unwrap_err().kind, JsonErrorKind::Depth);
    // Siblings are no depth.
    assert!(json::parse(format!("[{}[]]", "[],".repeat(1_000)).as_bytes()).is_ok());
}

#[test]
fn bytes_that_are_not_utf8_are_refused_where_they_stand() {
    let cases: [(&[u8], usize); 4] =
        [(b"\"a\xff\"", 2), (b"\"\xed\xa0\x80\"", 1), (b"\"\xc0\xaf\"", 1), (b"[1,\"ok\", \"\xe2\x82\"]", 10)];
    for (bytes, offset) in cases {
        let error = json::parse(bytes).unwrap_err();
        assert_eq!((error.offset, error.kind), (offset, JsonErrorKind::Utf8));
    }
}

#[test]
fn an_error_says_where() {
    let error = json::parse(b"{\"a\": tru}").unwrap_err();
    assert_eq!(error.to_string(), "unexpected character at byte 9");
    assert_eq!(json::parse(b"[1,").unwrap_err().to_string(), "unexpected end of JSON at byte 3");
    assert_eq!(json::parse(b"1 1").unwrap_err().to_string(), "text after the JSON value at byte 2");
}

#[test]
fn strings_are_ordered_and_measured_in_code_units() {
    let pair = JsString::from("\u{1f600}");
    let private = JsString::from("\u{e000}");
    let lone = JsString::from_utf16(vec![0xd800]);
    assert!(lone < pair && pair < private);
    assert_eq!((pair.utf16_len(), lone.utf16_len()), (2, 1));
    assert_eq!((lone.as_str(), lone.to_string_lossy().as_ref()), (None, "\u{fffd}"));
    assert_eq!(JsString::from_utf16(vec![0xd83d, 0xde00]), pair);
    assert_eq!(format!("{lone:?}"), r#""\ud800""#);
}

#[test]
fn a_large_object_of_equal_keys_is_read_without_delay_and_keeps_the_last() {
    let text = format!("{{{}\"k\":1}}", "\"k\":0,".repeat(200_000));
    let value = json::parse(text.as_bytes()).unwrap();
    assert_eq!(to_json(&value), r#"{"k":1}"#);
}

#[test]
fn numbers_that_are_not_finite_have_a_text_but_no_json() {
    assert_eq!(number_to_string(f64::NAN), "NaN");
    assert_eq!(number_to_string(f64::NEG_INFINITY), "-Infinity");
    assert_eq!(to_json(&Value::from(vec![f64::INFINITY.into(), f64::NAN.into(), (-0.0).into()])), "[null,null,0]");
}

#[test]
fn other_hosts_that_start_like_the_storage_host_keep_their_authority() {
    let of = |url: &str| {
        let file = Value::object([("type", Value::from("url")), ("value", Value::from(url))]);
        canonical_json(&Value::object([("inputs", Value::object([("f", file)]))]))
    };
    let host = "https://metaframe-asman-test.s3.us-west-1.amazonaws.com";
    for authority in [".example", ":65536", "@example"] {
        assert_eq!(
            of(&format!("{host}{authority}/a?b")),
            format!(r#"{{"inputs":{{"f":{{"type":"url","value":"{host}{authority}/a"}}}}}}"#)
        );
    }
}

/// Any string, with lone surrogates and everything that needs escaping.
fn any_text() -> impl Strategy<Value = JsString> {
    let unit = prop_oneof![
        4 => 0x20..0x7f_u16,
        1 => 0..0x20_u16,
        1 => 0xd800..0xe000_u16,
        1 => any::<u16>(),
    ];
    prop::collection::vec(unit, 0..8).prop_map(JsString::from_utf16)
}

fn any_key() -> impl Strategy<Value = JsString> {
    prop_oneof![any_text(), (0..20_u32).prop_map(|index| index.to_string().into()), "[a-c]".prop_map(JsString::from)]
}

fn any_value() -> impl Strategy<Value = Value> {
    let number = any::<u64>().prop_map(f64::from_bits).prop_filter("JSON has no such number", |n| n.is_finite());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        number.prop_map(Value::Number),
        any_text().prop_map(Value::String),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::vec((any_key(), inner), 0..6).prop_map(|pairs| Value::Object(Object::from_pairs(pairs))),
        ]
    })
}

/// A definition with all its parts, each filled at random.
fn any_definition() -> impl Strategy<Value = Vec<(JsString, Value)>> {
    let field = prop::sample::select(vec![
        "image",
        "command",
        "env",
        "inputs",
        "configFiles",
        "build",
        "requirements",
        "tags",
        "v",
        "unknown",
    ]);
    prop::collection::btree_map(field.prop_map(JsString::from), any_value(), 0..10)
        .prop_map(|fields| fields.into_iter().collect())
}

/// The same members at every depth, the last first.
fn reversed(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut pairs: Vec<_> = object.iter().map(|(key, value)| (key.clone(), reversed(value))).collect();
            pairs.reverse();
            Value::Object(Object::from_pairs(pairs))
        }
        Value::Array(items) => Value::Array(items.iter().map(reversed).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back_as_it_was(value in any_value()) {
        prop_assert_eq!(json::parse(to_json(&value).as_bytes()), Ok(value.clone()));
        let canonical = json::parse(to_canonical_json(&value).as_bytes()).unwrap();
        prop_assert_eq!(to_canonical_json(&canonical), to_canonical_json(&value));
    }

    #[test]
    fn a_job_id_does_not_depend_on_the_order_of_keys(fields in any_definition().prop_shuffle()) {
        let definition = Value::Object(Object::from_pairs(fields));
        prop_assert_eq!(job_id(&definition), job_id(&reversed(&definition)));
        prop_assert_eq!(canonical_json(&definition), canonical_json(&reversed(&definition)));
    }

    #[test]
    fn the_canonical_form_of_the_canonical_form_is_itself(fields in any_definition()) {
        let canonical = canonical_json(&Value::Object(Object::from_pairs(fields)));
        // `env` and files given as lists come out as objects, which stay as they are.
        let again = canonical_json(&json::parse(canonical.as_bytes()).unwrap());
        prop_assert_eq!(again, canonical);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in any::<prop::sample::Index>()) {
        let _ = json::parse(&bytes);
        let text = r#"{"a":["\ud83d\ude00\ud800x",-1.5e+300,true,null,{"1":"é"}]}"#;
        let at = cut.index(text.len());
        prop_assert!(json::parse(&text.as_bytes()[..at]).is_err());
    }

    #[test]
    fn a_number_is_written_so_that_it_reads_back(number in any::<u64>().prop_map(f64::from_bits)) {
        prop_assume!(number.is_finite());
        prop_assert_eq!(number_to_string(number).parse(), Ok(number));
    }
}
