//! A page's side of the conversation with the metapage that embeds it (metaframe protocol, version 2), without a browser: messages in,
//! messages and news out.
//!
//! The shell around it listens and posts, keeps the time, and makes binaries into `data:` texts before they come here, in order.

use std::collections::BTreeMap;

use protocol::json::{JsString, Value};

/// The version of the protocol.
const VERSION: &str = "2";
/// How long to wait for an answer before asking again, in milliseconds: doubled each time, then every five seconds, as the
/// published library does. A metapage may be there long after its frames.
const PATIENCE_MS: [u64; 6] = [200, 400, 800, 1600, 3200, 5000];
/// How many different inputs are kept before the metapage has answered, and at most after: what a frame can be made to hold.
const PIPES_MAX: usize = 10_000;

/// A message from the metapage, as far as it matters. What is not there is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Incoming {
    /// What `jsonrpc` says.
    pub jsonrpc: String,
    /// Its name.
    pub method: String,
    /// To which frame.
    pub iframe_id: String,
    /// From which metapage.
    pub parent_id: String,
    /// The inputs in it, by pipe: at `params.state.inputs` of an answer, at `params.inputs` of an update. `None` takes a pipe away.
    pub inputs: Vec<(String, Option<Value>)>,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Post this to the metapage.
    Post(Value),
    /// Call [`Metaframe::retry`] in so many milliseconds.
    RetryIn(u64),
    /// The inputs are others now; these pipes have changed.
    Inputs(Vec<String>),
    /// The metapage has answered: what it gave at the start was told before.
    Connected,
}

/// The conversation.
#[derive(Clone, Debug)]
pub struct Metaframe {
    own: String,
    parent: Option<String>,
    asked: usize,
    last_id: u64,
    inputs: BTreeMap<String, Value>,
    outputs: BTreeMap<String, Value>,
}

impl Metaframe {
    /// A frame that the metapage knows as `own` (its `window.name`), and its first question.
    #[must_use]
    pub fn start(own: &str) -> (Self, Vec<Effect>) {
        let mut frame = Self {
            own: own.to_owned(),
            parent: None,
            asked: 0,
            last_id: 0,
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
        };
        let effects = frame.retry();
        (frame, effects)
    }

    /// Asks again, unless there was an answer.
    pub fn retry(&mut self) -> Vec<Effect> {
        if self.parent.is_some() {
            return Vec::new();
        }
        let wait = PATIENCE_MS[self.asked.min(PATIENCE_MS.len() - 1)];
        self.asked += 1;
        vec![self.post("SetupIframeClientRequest", version()), Effect::RetryIn(wait)]
    }

    /// Whether the metapage has answered.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.parent.is_some()
    }

    /// Everything received, but for what was taken away again.
    #[must_use]
    pub fn inputs(&self) -> &BTreeMap<String, Value> {
        &self.inputs
    }

    /// Takes a message. One that is not for this frame or of no known kind changes nothing.
    pub fn receive(&mut self, message: Incoming) -> Vec<Effect> {
        if message.jsonrpc != "2.0" || message.iframe_id != self.own {
            return Vec::new();
        }
        match (message.method.as_str(), &self.parent) {
            ("SetupIframeServerResponse", None) if !message.parent_id.is_empty() => self.connect(message),
            // A metapage may be quicker with its first inputs than with its answer.
            ("InputsUpdate", None) => self.merge(message.inputs),
            ("InputsUpdate", Some(parent)) if *parent == message.parent_id => self.merge(message.inputs),
            _ => Vec::new(),
        }
    }

    fn connect(&mut self, message: Incoming) -> Vec<Effect> {
        self.parent = Some(message.parent_id);
        let mut effects = vec![self.post("SetupIframeServerResponseAck", version())];
        // What came before the answer is newer than the state that the answer holds.
        let given = message.inputs.into_iter().filter(|(pipe, _)| !self.inputs.contains_key(pipe)).collect();
        effects.extend(self.merge(given));
        effects.push(Effect::Connected);
        let outputs = self.outputs.iter().map(|(pipe, value)| (JsString::from(pipe.as_str()), value.clone()));
        let outputs = Value::object(outputs.collect::<Vec<_>>());
        effects.push(self.post("OutputsUpdate", outputs));
        effects
    }

    fn merge(&mut self, given: Vec<(String, Option<Value>)>) -> Vec<Effect> {
        let mut changed = Vec::with_capacity(given.len());
        for (pipe, value) in given {
            match value {
                Some(value) if self.inputs.len() < PIPES_MAX || self.inputs.contains_key(&pipe) => {
                    self.inputs.insert(pipe.clone(), value);
                }
                Some(_) => continue,
                None => drop(self.inputs.remove(&pipe)),
            }
            changed.push(pipe);
        }
        if changed.is_empty() { Vec::new() } else { vec![Effect::Inputs(changed)] }
    }

    /// Hands outputs on, now or once the metapage has answered.
    pub fn give(&mut self, outputs: Vec<(String, Value)>) -> Vec<Effect> {
        let update =
            Value::object(outputs.iter().map(|(pipe, value)| (pipe.as_str(), value.clone())).collect::<Vec<_>>());
        self.outputs.extend(outputs);
        if self.parent.is_none() {
            return Vec::new();
        }
        vec![self.post("OutputsUpdate", update)]
    }

    /// Tells the page's new `location.hash`, with its `#`.
    pub fn tell_hash(&mut self, hash: &str) -> Vec<Effect> {
        if self.parent.is_none() {
            return Vec::new();
        }
        let params = Value::object([("hash", Value::from(hash)), ("metaframe", self.own.as_str().into())]);
        vec![self.post("HashParamsUpdate", params)]
    }

    fn post(&mut self, method: &str, params: Value) -> Effect {
        self.last_id += 1;
        let mut fields = vec![
            ("jsonrpc", Value::from("2.0")),
            ("id", Value::from(self.last_id as f64)),
            ("method", method.into()),
            ("params", params),
            ("iframeId", self.own.as_str().into()),
        ];
        fields.extend(self.parent.as_deref().map(|parent| ("parentId", parent.into())));
        Effect::Post(Value::object(fields))
    }
}

fn version() -> Value {
    Value::object([("version", Value::from(VERSION))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::json::to_json;

    fn texts(effects: &[Effect]) -> Vec<String> {
        let text = |effect: &Effect| match effect {
            Effect::Post(message) => to_json(message),
            other @ (Effect::RetryIn(_) | Effect::Inputs(_) | Effect::Connected) => format!("{other:?}"),
        };
        effects.iter().map(text).collect()
    }

    fn message(method: &str, inputs: &[(&str, Option<&str>)]) -> Incoming {
        let inputs = inputs.iter().map(|(pipe, value)| ((*pipe).to_owned(), value.map(Value::from))).collect();
        Incoming {
            jsonrpc: "2.0".into(),
            method: method.into(),
            iframe_id: "mf-left".into(),
            parent_id: "k3".into(),
            inputs,
        }
    }

    #[test]
    fn the_start_is_as_the_protocol_has_it() {
        let (mut frame, asked) = Metaframe::start("mf-left");
        assert_eq!(
            texts(&asked),
            [
                r#"{"jsonrpc":"2.0","id":1,"method":"SetupIframeClientRequest","params":{"version":"2"},"iframeId":"mf-left"}"#,
                "RetryIn(200)"
            ]
        );
        assert_eq!(frame.give(vec![("early".into(), "x".into())]), []);
        assert_eq!(frame.tell_hash("#?a=1"), []);
        let answered = frame.receive(message("SetupIframeServerResponse", &[("seed.txt", Some("42"))]));
        assert_eq!(
            texts(&answered),
            [
                r#"{"jsonrpc":"2.0","id":2,"method":"SetupIframeServerResponseAck","params":{"version":"2"},"iframeId":"mf-left","parentId":"k3"}"#,
                r#"Inputs(["seed.txt"])"#,
                "Connected",
                r#"{"jsonrpc":"2.0","id":3,"method":"OutputsUpdate","params":{"early":"x"},"iframeId":"mf-left","parentId":"k3"}"#,
            ]
        );
        assert_eq!(frame.retry(), []);
        assert_eq!(frame.receive(message("SetupIframeServerResponse", &[("seed.txt", Some("43"))])), []);
        assert_eq!(
            texts(&frame.give(vec![("late".into(), "y".into())])),
            [
                r#"{"jsonrpc":"2.0","id":4,"method":"OutputsUpdate","params":{"late":"y"},"iframeId":"mf-left","parentId":"k3"}"#
            ]
        );
        assert_eq!(
            texts(&frame.tell_hash("#?a=1")),
            [
                r##"{"jsonrpc":"2.0","id":5,"method":"HashParamsUpdate","params":{"hash":"#?a=1","metaframe":"mf-left"},"iframeId":"mf-left","parentId":"k3"}"##
            ]
        );
    }

    #[test]
    fn it_asks_at_the_known_times_until_there_is_an_answer() {
        let (mut frame, mut effects) = Metaframe::start("mf-left");
        let mut at = vec![0];
        for _ in 0..8 {
            let Some(Effect::RetryIn(wait)) = effects.last() else { panic!("{effects:?}") };
            at.push(at[at.len() - 1] + wait);
            effects = frame.retry();
        }
        assert_eq!(at, [0, 200, 600, 1400, 3000, 6200, 11_200, 16_200, 21_200]);
    }

    #[test]
    fn inputs_add_up_and_can_be_taken_away() {
        let (mut frame, _) = Metaframe::start("mf-left");
        frame.receive(message("SetupIframeServerResponse", &[("a", Some("1")), ("b", Some("2"))]));
        assert_eq!(
            frame.receive(message("InputsUpdate", &[("b", None), ("c", Some("3"))])),
            [Effect::Inputs(vec!["b".into(), "c".into()])]
        );
        // Also what is the same is told again.
        assert_eq!(frame.receive(message("InputsUpdate", &[("c", Some("3"))])), [Effect::Inputs(vec!["c".into()])]);
        assert_eq!(frame.inputs().keys().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(frame.receive(message("InputsUpdate", &[])), []);
    }

    #[test]
    fn inputs_before_the_answer_are_kept_and_are_the_newer_ones() {
        let (mut frame, _) = Metaframe::start("mf-left");
        frame.receive(message("InputsUpdate", &[("a", Some("new"))]));
        let answered = frame.receive(message("SetupIframeServerResponse", &[("a", Some("old")), ("b", Some("2"))]));
        assert!(answered.contains(&Effect::Inputs(vec!["b".into()])));
        assert_eq!(frame.inputs()["a"], "new".into());
    }

    #[test]
    fn what_is_not_for_this_frame_changes_nothing() {
        let (mut frame, _) = Metaframe::start("mf-left");
        let answer = message("SetupIframeServerResponse", &[("a", Some("1"))]);
        for wrong in [
            Incoming { jsonrpc: "1.0".into(), ..answer.clone() },
            Incoming { iframe_id: "mf-right".into(), ..answer.clone() },
            Incoming { parent_id: String::new(), ..answer.clone() },
            Incoming { method: "MessageAck".into(), ..answer.clone() },
            Incoming::default(),
        ] {
            assert_eq!(frame.receive(wrong), []);
        }
        assert!(!frame.is_connected());
        frame.receive(answer);
        let update = message("InputsUpdate", &[("a", Some("2"))]);
        assert_eq!(frame.receive(Incoming { parent_id: "other".into(), ..update }), []);
        assert_eq!(frame.inputs()["a"], "1".into());
    }

    #[test]
    fn a_metapage_cannot_make_it_hold_more_than_so_many_inputs() {
        let (mut frame, _) = Metaframe::start("mf-left");
        for i in 0..PIPES_MAX + 5 {
            frame.receive(message("InputsUpdate", &[(&i.to_string(), Some("x"))]));
        }
        assert_eq!(frame.inputs().len(), PIPES_MAX);
        assert_eq!(frame.receive(message("InputsUpdate", &[("0", Some("y"))])), [Effect::Inputs(vec!["0".into()])]);
    }
}
