//! Links that are in the world, and what they have meant since they were made.

use proptest::prelude::*;

use super::*;
use crate::canonical::job_id;
use crate::json;

const ORIGIN: &str = "https://container.mtfm.io";

fn job_of(link: &str) -> (String, Assembled) {
    let link = Link::parse(link).unwrap();
    let params = Params::of(&link.fragment);
    assert_eq!(params.problems, []);
    let assembled = assemble(params.job.as_ref(), &params, &[], &link.origin).unwrap();
    (job_id(&assembled.definition).to_string(), assembled)
}

fn value(json: &str) -> Value {
    json::parse(json.as_bytes()).unwrap()
}

#[test]
fn an_old_link_whose_parameters_became_variables_keeps_its_id() {
    let job = "%7B%22command%22%3A%22python%20-c%20'print(%5C%22help%5C%22)'%22%2C%22image%22%3A%22python%3A3.12.1-alpine3.19%22%7D";
    let job = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, job);
    assert!(job.starts_with("JTdCJTIyY29t") && job.ends_with("N0Q="));
    let link = format!(
        "{ORIGIN}/?command=cHJpbnQgXCggc2Rmc2RmMiBcKQ%3D%3D&image=python3#/queue/1?command=cHl0aG9uIC1jICdwcmludCgiaGVscCIpJw%253D%253D\
         &image=python%253A3.8.8-alpine3.13&job={job}&queue=public1"
    );
    let (id, assembled) = job_of(&link);
    assert_eq!(id, "0e43af301efde5067c447c76b6d62220324da99d61f8e7ede84efe16c36e6996");
    assert_eq!(
        crate::canonical::canonical_json(&assembled.definition),
        "{\"command\":\"python -c 'print(\\\"help\\\")'\",\"env\":{\"command\":\"cHl0aG9uIC1jICdwcmludCgiaGVscCIpJw%253D%253D\",\
         \"image\":\"python%253A3.8.8-alpine3.13\"},\"image\":\"python:3.12.1-alpine3.19\"}"
    );
    let parsed = Link::parse(&link).unwrap();
    assert_eq!((parsed.fragment.pre.as_str(), Params::of(&parsed.fragment).queue()), ("/queue/1", "public1"));
}

#[test]
fn percent_encoded_padding_is_read() {
    let (id, assembled) = job_of(
        "https://container.mtfm.io/#?ignoreQueueOverride=true&job=JTdCJTIyY29tbWFuZCUyMiUzQSUyMmVjaG8lMjAlNUMlMjJoZWxsbyUyMHdvcmxkJTVDJTIyJTIyJTJDJTIyaW1hZ2UlMjIlM0ElMjJhbHBpbmUlM0EzLjE5LjElMjIlN0Q%3D&queue=public1",
    );
    assert_eq!(id, "9a684c59f4270fa102f102d2aafe92d5e78ad285116f02d845e5dabbfb0ba873");
    assert_eq!(json::to_json(&assembled.definition), r#"{"command":"echo \"hello world\"","image":"alpine:3.19.1"}"#);
}

#[test]
fn files_variables_and_substitution_come_together() {
    let (id, assembled) = job_of(
        "https://h/#?TAG=v2&inputs=JTdCJTIyZ28uc2glMjIlM0ElMjJlY2hvJTIwaGklMjAlMjQxJTIyJTdE&job=JTdCJTIyY29tbWFuZCUyMiUzQSUyMnNoJTIwJTJGaW5wdXRzJTJGZ28uc2glMjAlMjQlN0JUQUclN0QlMjIlMkMlMjJpbWFnZSUyMiUzQSUyMmFscGluZSUzQTMuMjAlMjIlN0Q=",
    );
    assert_eq!(id, "59999fe2276aeeee4f48d9a7ace30ced1a10cf38d65b7b81a1f488b3aa8a263b");
    assert_eq!(
        assembled.definition,
        value(
            r#"{"image":"alpine:3.20","command":"sh /inputs/go.sh v2","env":{"TAG":"v2"},"configFiles":{"go.sh":{"type":"utf8","value":"echo hi $1"}}}"#
        )
        .clone_in_order_of(&assembled.definition)
    );
}

/// Equal whatever the order of fields.
trait InOrder {
    fn clone_in_order_of(&self, other: &Self) -> Self;
}

impl InOrder for Value {
    fn clone_in_order_of(&self, other: &Self) -> Self {
        assert_eq!(json::to_canonical_json(self), json::to_canonical_json(other));
        other.clone()
    }
}

#[test]
fn ids_of_large_files_depend_on_the_server_that_has_them() {
    let source = value(r#"{"image":"alpine","command":"true"}"#);
    let params = Params {
        inputs: Some(value(&format!(r#"{{"f.txt":"{}"}}"#, "a".repeat(201))).as_object().unwrap().clone()),
        ..Params::default()
    };
    for (origin, id) in [
        (ORIGIN, "5ec87151902c49f13278824382fe8412f5388939827ce5fb02b8ebcf17cd753d"),
        ("http://localhost:8000", "04e3c14cc537a606df1f76b66a88bbc4ccb703dfe0e43a5d77b4d9a9254d1d7e"),
    ] {
        let assembled = assemble(Some(&source), &params, &[], origin).unwrap();
        assert_eq!(job_id(&assembled.definition).to_string(), id);
        assert_eq!(assembled.uploads.len(), 1);
        assert_eq!(assembled.uploads[0].sha256, "a92efd82109373e58f9a2056dee01e807e216ce6075f7051207c0a9f7d666e50");
        assert_eq!(assembled.uploads[0].bytes, "a".repeat(201).into_bytes());
    }
}

#[test]
fn two_hundred_units_stay_inside_whatever_they_are() {
    let source = value(r#"{"image":"i"}"#);
    let uploads = |kind: &str, content: Value| {
        let file = Value::object([("type", Value::from(kind)), ("value", content)]);
        let assembled = assemble(Some(&source), &Params::default(), &[("a".into(), file)], ORIGIN).unwrap();
        assembled.uploads.into_iter().map(|upload| upload.bytes.len()).collect::<Vec<_>>()
    };
    // A character outside the first plane is two units, and four bytes.
    assert_eq!(uploads("utf8", "\u{1F600}".repeat(100).into()), [0; 0]);
    assert_eq!(uploads("utf8", ("\u{1F600}".repeat(100) + "a").into()), [401]);
    assert_eq!(uploads("base64", "QUFB".repeat(50).into()), [0; 0]);
    assert_eq!(uploads("base64", "QUFB".repeat(51).into()), [153]);
    assert_eq!(uploads("json", "a".repeat(198).into()), [0; 0]);
    assert_eq!(uploads("json", "a".repeat(199).into()), [201]);
    assert_eq!(uploads("url", "https://h/".repeat(100).into()), [0; 0]);
    assert_eq!(uploads("key", "k".repeat(1000).into()), [0; 0]);
}

#[test]
fn equal_files_are_uploaded_once_and_inputs_lose_one_slash() {
    let source = value(r#"{"image":"i","inputs":{"b":{"value":"own"}}}"#);
    let text = Value::object([("type", Value::from("utf8")), ("value", "x".repeat(300).into())]);
    let inputs = [
        ("/a".to_owned(), text.clone()),
        ("//b".to_owned(), text.clone()),
        ("b".to_owned(), Value::object([("value", Value::from("new"))])),
        ("job".to_owned(), text),
    ];
    let assembled = assemble(Some(&source), &Params::default(), &inputs, ORIGIN).unwrap();
    assert_eq!(assembled.uploads.len(), 1);
    let names: Vec<_> = assembled
        .definition
        .get("inputs")
        .unwrap()
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, ["b", "a", "/b"]);
    assert_eq!(assembled.definition.get("inputs").unwrap().get("b").unwrap().get("value"), Some(&"new".into()));
}

#[test]
fn without_an_image_or_a_build_there_is_no_job() {
    let none = |source: Option<&Value>| assemble(source, &Params::default(), &[], ORIGIN).is_none();
    assert!(none(None) && none(Some(&value(r#"{"image":"","command":"true"}"#))) && none(Some(&value("[]"))));
    assert!(!none(Some(&value(r#"{"build":{}}"#))));
}

#[test]
fn what_a_link_does_not_say_is_not_in_the_definition() {
    let source = value(r#"{"image":"i","command":["a","${X}"],"inputs":{},"configFiles":{}}"#);
    let assembled = assemble(Some(&source), &Params::default(), &[], ORIGIN).unwrap();
    assert_eq!(json::to_json(&assembled.definition), r#"{"image":"i","command":["a","${X}"]}"#);
}

#[test]
fn a_variable_is_put_where_it_is_first_named_as_it_is() {
    let fragment = Fragment::parse("?A=$&-$$&B=${A}&mp_x=1&channel=2&readonly=3");
    let params = Params::of(&fragment);
    assert_eq!(params.env, [("A".into(), "$".into()), ("-$$".into(), String::new()), ("B".into(), "${A}".into())]);
    let source = value(
        r#"{"image":"i","command":"${A} ${A} ${B}","build":{"context":"https://h/${B}"},"env":{"A":"own","C":"own"}}"#,
    );
    let assembled = assemble(Some(&source), &params, &[], ORIGIN).unwrap();
    assert_eq!(
        json::to_canonical_json(&assembled.definition),
        r#"{"build":{"context":"https://h/${A}"},"command":"$ ${A} ${A}","env":{"-$$":"","A":"$","B":"${A}","C":"own"},"image":"i"}"#
    );
}

#[test]
fn a_parameter_that_cannot_be_read_is_told_and_the_rest_is_read() {
    let params = Params::of(&Fragment::parse(
        "#?job=%&inputs=W10=&control=bnVsbA==&definition=AAAA&queue=q&debug=1&terminal=true",
    ));
    let told: Vec<_> = params.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "the link's parameter \"job\": it is not base64",
            "the link's parameter \"inputs\": it must be a JSON object, not array",
            "the link's parameter \"definition\": what it stands for is not JSON: unexpected character at byte 0",
        ]
    );
    assert_eq!((params.queue(), params.debug, params.terminal, params.control.as_ref()), ("q", false, true, None));
}

#[test]
fn a_fragment_is_taken_apart_as_it_stands() {
    let parsed = |text| {
        let fragment = Fragment::parse(text);
        let params = fragment.params().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
        (fragment.pre.clone(), params.join(" "))
    };
    for (text, pre, params) in [
        ("", "", ""),
        ("#queue=x", "queue=x", ""),
        ("##/queue/1?a=1&&b&a=2=3&=x&c=?&d=%20+", "/queue/1", "a=2=3 b= =x c=? d=%20+"),
        ("?b=1&10=x&9=y&a=2", "", "9=y 10=x b=1 a=2"),
    ] {
        assert_eq!(parsed(text), (pre.to_owned(), params.to_owned()), "{text}");
    }
}

#[test]
fn a_written_fragment_has_its_keys_sorted_and_keeps_what_stands_before() {
    let mut fragment = Fragment::parse("/x?zeta=1&queue=q&alpha=2");
    assert!(fragment.set("job", Some("JTdC")));
    assert_eq!(fragment.to_string(), "/x?alpha=2&job=JTdC&queue=q&zeta=1");
    assert!(!fragment.set("job", Some("JTdC")) && !fragment.set("none", None));
    for key in ["alpha", "job", "queue", "zeta"] {
        assert!(fragment.set(key, None));
    }
    assert_eq!(fragment.to_string(), "/x");
    // By UTF-16 code units, U+1F600 comes before U+FFFD.
    assert_eq!(Fragment::parse("?\u{FFFD}=1&\u{1F600}=2&Z=3&a=4").to_string(), "?Z=3&a=4&\u{1F600}=2&\u{FFFD}=1");
}

#[test]
fn a_browser_encodes_what_may_not_stand_in_a_fragment() {
    let link = Link::parse(" https://h/#?B=\u{e9} \"<>`'{}\n").unwrap();
    assert_eq!(link.fragment.get("B"), Some("%C3%A9%20%22%3C%3E%60'{}"));
}

#[test]
fn links_are_made_and_read_back() {
    let queue: QueueName = "my queue&x".parse().unwrap();
    let definition = value(r#"{"image":"alpine","command":"echo 'ä' > /x"}"#);
    let whole = Link::whole(ORIGIN, &definition, Some(&queue));
    let read = Link::parse(&whole.to_string()).unwrap();
    assert_eq!(read, whole);
    let params = Params::of(&read.fragment);
    assert_eq!(json::to_canonical_json(params.job.as_ref().unwrap()), json::to_canonical_json(&definition));
    assert_eq!(QueueAddress::resolve(params.queue(), ORIGIN).unwrap().unwrap().name, queue);
    let id = job_id(&definition);
    let short = Link::short(ORIGIN, id, Some(&queue));
    assert_eq!(short.to_string(), format!("{ORIGIN}/j/{id}#?queue=my%20queue%26x"));
    for text in [
        short.to_string(),
        format!("{ORIGIN}/j/{id}.json#?queue=my%20queue%26x"),
        format!("{ORIGIN}/j/{id}/?x=1#?queue=my%20queue%26x"),
    ] {
        assert_eq!(Link::parse(&text).unwrap(), short);
    }
    assert_eq!(Link::parse("https://h/j/xyz"), Err(LinkError::NoJobId));
    assert_eq!(Link::parse("container.mtfm.io/#?queue=q"), Err(LinkError::NoOrigin));
    assert_eq!(Link::parse("https:///#?queue=q"), Err(LinkError::NoOrigin));
    assert_eq!(Link::parse("https://h").unwrap().to_string(), "https://h/");
}

#[test]
fn a_queue_is_a_name_here_or_on_another_server_or_this_machines_own() {
    let resolved = |text| {
        let address = QueueAddress::resolve(text, "https://grid.example/").unwrap().unwrap();
        (address.socket(), address.origin)
    };
    for (text, socket, origin) in [
        ("q", "wss://grid.example/q/q/client", "https://grid.example"),
        ("a%20b", "wss://grid.example/q/a%20b/client", "https://grid.example"),
        ("50%", "wss://grid.example/q/50%25/client", "https://grid.example"),
        ("local", "ws://localhost:8000/q/local/client", "http://localhost:8000"),
        ("https://h:81/q", "wss://h:81/q/q/client", "https://h:81"),
        ("http://h/q/name/", "ws://h/q/name/client", "http://h"),
    ] {
        assert_eq!(resolved(text), (socket.to_owned(), origin.to_owned()), "{text}");
    }
    assert_eq!(QueueAddress::resolve("", ORIGIN), Ok(None));
    assert_eq!(QueueAddress::resolve("https://h", ORIGIN), Err(AddressError::Nameless));
    assert_eq!(QueueAddress::resolve("https://h/q/", ORIGIN).unwrap().unwrap().name.as_str(), "q");
    assert!(matches!(QueueAddress::resolve("a/b", ORIGIN), Err(AddressError::Name(_))));
}

#[test]
fn an_embedding_pages_queue_wins_unless_it_is_ignored() {
    let queue = |text| Params::of(&Fragment::parse(text)).queue().to_owned();
    assert_eq!(queue("?queue=a&queueOverride=b"), "b");
    assert_eq!(queue("?queue=a&queueOverride=b&ignoreQueueOverride=true"), "a");
    assert_eq!(queue("?queue=a&queueOverride="), "a");
    assert_eq!(Params::of(&Fragment::parse("?control=eyJuYW1lc3BhY2UiOiJuIn0")).namespace(), "n");
    assert_eq!(Params::default().namespace(), "_");
}

#[test]
fn base64_is_read_as_browsers_read_it() {
    for (text, bytes) in [
        ("", &b""[..]),
        ("QQ==", b"A"),
        ("QQ", b"A"),
        (" Q\nQ ", b"A"),
        ("QR==", b"A"),
        ("QUI=", b"AB"),
        ("/+8=", &[0xff, 0xef]),
    ] {
        assert_eq!(codec::decode_base64(text).as_deref(), Ok(bytes), "{text}");
    }
    for text in ["Q", "QQ=", "QQ===", "_-8=", "Q=Q=", "=", "\u{e9}QQ="] {
        assert_eq!(codec::decode_base64(text), Err(CodecError::Base64), "{text}");
    }
}

proptest! {
    #[test]
    fn any_json_comes_back_from_a_link(text in any::<String>(), number in any::<f64>()) {
        let value = Value::object([("t", Value::from(text)), ("n", number.into())]);
        let written = codec::encode(&value);
        prop_assert!(written.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)));
        prop_assert_eq!(json::to_canonical_json(&codec::decode(&written).unwrap()), json::to_canonical_json(&value));
        let unpadded = codec::decode(written.trim_end_matches('=')).unwrap();
        prop_assert_eq!(json::to_canonical_json(&unpadded), json::to_canonical_json(&value));
    }

    #[test]
    fn any_text_is_a_fragment_that_is_read_as_it_was_written(text in "[#?&=a-c0-2é%/]{0,40}") {
        let fragment = Fragment::parse(&text);
        let again = Fragment::parse(&fragment.to_string());
        prop_assert_eq!(again.to_string(), fragment.to_string());
        let _ = Params::of(&fragment);
        let _ = Link::parse(&text);
        let _ = codec::decode(&text);
    }
}
