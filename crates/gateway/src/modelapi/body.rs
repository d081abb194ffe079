//! A request body, understood as far as routing, budgets and metering need. Pure.
//!
//! Only what must change does (the model's name, and in OpenAI's streams the wish for counts);
//! every other byte goes on as it came, so that prompt caches keep hitting.

use super::operation::Ask;
use super::wire::Failure;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::ops::Range;

/// Longest model name; providers' longest have about 80 characters.
const MODEL_NAME_BYTES_MAX: usize = 256;
/// Bytes that count as one token when a prompt is estimated: below what texts have (about 4), so
/// that the estimate is rather too high.
const BYTES_PER_TOKEN: u64 = 3;
/// Most answers to one question that are reckoned with; providers allow fewer.
const ANSWERS_MAX: u64 = 128;

/// The parts of a request body that are needed.
#[derive(Deserialize)]
struct Outline<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    // `null` is there too, and must be replaced rather than doubled.
    #[serde(borrow, default, deserialize_with = "present")]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_output_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    #[serde(borrow, rename = "generationConfig", alias = "generation_config")]
    generation: Option<&'a RawValue>,
}

fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Generation {
    #[serde(rename = "maxOutputTokens", alias = "max_output_tokens")]
    max: Option<u64>,
    #[serde(rename = "candidateCount", alias = "candidate_count")]
    answers: Option<u64>,
}

/// A request body.
pub(crate) struct AskBody {
    body: Bytes,
    /// Where the value of `"model"` stands in it, if it must be replaced there.
    model_at: Option<Range<usize>>,
    /// What is put where instead, so that a stream ends with its counts.
    counts: Option<(Range<usize>, String)>,
    pub(crate) model: String,
    pub(crate) stream: bool,
    /// Longest answer that is asked for, in tokens, over all candidates.
    max_output: Option<u64>,
}

fn bad(why: impl std::fmt::Display) -> Failure {
    Failure::new(400, format!("the request body is not usable: {why}"))
}

fn number(raw: Option<&RawValue>) -> Option<u64> {
    serde_json::from_str(raw?.get()).ok()
}

impl AskBody {
    /// Finds what is needed; `in_path` is the model that Gemini names in the path. Duplicate keys
    /// are refused: two readers could choose differently.
    pub(crate) fn parse(body: Bytes, ask: Ask, in_path: Option<&str>) -> Result<Self, Failure> {
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(bad("it is no JSON object"));
        }
        let outline: Outline<'_> = serde_json::from_slice(&body).map_err(bad)?;
        // A raw value borrows from the body, so its place follows from the two addresses.
        let place = |raw: &RawValue| {
            let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
            start..start + raw.get().len()
        };
        let (model, model_at) = match in_path {
            Some(model) => (model.to_owned(), None),
            None => {
                let raw = outline.model.ok_or_else(|| bad("it names no model"))?;
                let model = serde_json::from_str::<String>(raw.get());
                (model.map_err(|_| bad("its model is not a string"))?, Some(place(raw)))
            }
        };
        if model.len() > MODEL_NAME_BYTES_MAX {
            return Err(bad("its model's name is too long"));
        }
        let stream = match ask {
            Ask::StreamGenerate { .. } => true,
            Ask::Generate | Ask::CountGemini | Ask::Embeddings => false,
            _ => match outline.stream.map(RawValue::get) {
                None | Some("false" | "null") => false,
                Some("true") => true,
                Some(_) => return Err(bad("its stream is neither true nor false")),
            },
        };
        let counts = match (ask, stream) {
            (Ask::Chat, true) => with_counts(&body, outline.stream_options, place),
            _ => None,
        };
        let max_output = max_output(&outline, ask);
        Ok(Self { model_at, counts, model, stream, max_output, body: body.clone() })
    }

    /// The body with the provider's own name for the model.
    pub(crate) fn with_model(&self, model: &str) -> Bytes {
        let name = serde_json::Value::from(model).to_string();
        let mut changes: Vec<(&Range<usize>, &str)> = Vec::new();
        changes.extend(self.model_at.as_ref().map(|at| (at, name.as_str())));
        changes.extend(self.counts.as_ref().map(|(at, text)| (at, text.as_str())));
        if changes.is_empty() {
            return self.body.clone();
        }
        changes.sort_by_key(|(at, _)| at.start);
        let added: usize = changes.iter().map(|(_, text)| text.len()).sum();
        let mut out = Vec::with_capacity(self.body.len() + added);
        let mut from = 0;
        for (at, text) in changes {
            out.extend_from_slice(&self.body[from..at.start]);
            out.extend_from_slice(text.as_bytes());
            from = at.end;
        }
        out.extend_from_slice(&self.body[from..]);
        Bytes::from(out)
    }

    /// The most tokens this is expected to take: of the prompt, of the answer.
    pub(crate) fn estimate(&self, ask: Ask, answer_tokens: u32) -> (u64, u64) {
        if ask.is_count() {
            return (0, 0);
        }
        let prompt = (self.body.len() as u64).div_ceil(BYTES_PER_TOKEN);
        if ask == Ask::Embeddings {
            return (prompt, 0);
        }
        (prompt, self.max_output.unwrap_or(u64::from(answer_tokens)))
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.body
    }
}

/// Only the fields of the format at hand count: others would be ignored by the provider. Where
/// two say the same thing the larger does.
fn max_output(outline: &Outline<'_>, ask: Ask) -> Option<u64> {
    let generation = outline.generation.and_then(|raw| serde_json::from_str(raw.get()).ok());
    let generation: Generation = generation.unwrap_or_default();
    let (max, answers) = match ask {
        Ask::Chat => {
            let max = number(outline.max_completion_tokens).max(number(outline.max_tokens));
            (max, number(outline.n))
        }
        Ask::Responses => (number(outline.max_output_tokens), None),
        Ask::Generate | Ask::StreamGenerate { .. } => (generation.max, generation.answers),
        _ => (number(outline.max_tokens), None),
    };
    Some(max?.saturating_mul(answers.unwrap_or(1).clamp(1, ANSWERS_MAX)))
}

/// OpenAI's streams end with counts only if asked; every current client accepts the additional
/// chunk, whose `choices` are empty, so it is passed on.
fn with_counts(
    body: &[u8],
    options: Option<&RawValue>,
    place: impl Fn(&RawValue) -> Range<usize>,
) -> Option<(Range<usize>, String)> {
    type Options = serde_json::Map<String, serde_json::Value>;
    let Some(raw) = options else {
        let at = body.iter().position(|&b| b == b'{')? + 1;
        return Some((at..at, r#""stream_options":{"include_usage":true},"#.to_owned()));
    };
    let mut options: Options = match raw.get() {
        "null" => Options::new(),
        // What is no object is the provider's to refuse.
        text => serde_json::from_str(text).ok()?,
    };
    if options.get("include_usage") == Some(&serde_json::Value::Bool(true)) {
        return None;
    }
    options.insert("include_usage".into(), true.into());
    Some((place(raw), serde_json::Value::Object(options).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzz;

    fn chat(body: &str) -> AskBody {
        AskBody::parse(Bytes::copy_from_slice(body.as_bytes()), Ask::Chat, None).expect("valid")
    }

    #[test]
    fn only_the_model_s_name_and_the_wish_for_counts_change_in_a_body() {
        let text = r#" {"messages":[{"model":"inner"}], "model" : "a\u0062c" ,"max_tokens":5} "#;
        let ask = chat(text);
        assert_eq!((ask.model.as_str(), ask.stream), ("abc", false));
        assert_eq!(
            ask.with_model("x\"y"),
            r#" {"messages":[{"model":"inner"}], "model" : "x\"y" ,"max_tokens":5} "#
        );
        for (text, want) in [
            (
                r#"{ "model":"a","stream":true}"#,
                r#"{"stream_options":{"include_usage":true}, "model":"b","stream":true}"#,
            ),
            (
                r#"{"stream_options":{"x":1,"include_usage":false},"stream":true,"model":"a"}"#,
                r#"{"stream_options":{"include_usage":true,"x":1},"stream":true,"model":"b"}"#,
            ),
            (
                r#"{"model":"a","stream":true,"stream_options":null}"#,
                r#"{"model":"b","stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"model":"a","stream":true,"stream_options":{"include_usage":true}}"#,
                r#"{"model":"b","stream":true,"stream_options":{"include_usage":true}}"#,
            ),
        ] {
            let made = chat(text).with_model("b");
            assert_eq!(made, want);
            assert!(serde_json::from_slice::<serde_json::Value>(&made).is_ok());
        }
    }

    #[test]
    fn estimates_follow_what_is_asked_for_in_every_format() {
        let of = |ask, body: &'static str| {
            let path = matches!(ask, Ask::Generate).then_some("g");
            AskBody::parse(Bytes::from(body), ask, path).expect(body).estimate(ask, 100).1
        };
        assert_eq!(of(Ask::Messages { beta: false }, r#"{"model":"m","max_tokens":7}"#), 7);
        assert_eq!(of(Ask::Chat, r#"{"model":"m","max_completion_tokens":7,"n":3}"#), 21);
        assert_eq!(of(Ask::Responses, r#"{"model":"m","max_output_tokens":9}"#), 9);
        assert_eq!(of(Ask::Generate, r#"{"generationConfig":{"maxOutputTokens":4}}"#), 4);
        assert_eq!(of(Ask::Chat, r#"{"model":"m","max_tokens":null}"#), 100);
        assert_eq!(of(Ask::CountTokens { beta: false }, r#"{"model":"m","max_tokens":7}"#), 0);
    }

    #[test]
    fn ambiguous_or_broken_bodies_are_refused() {
        for bad in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            r#"["m",true,null,1,1,1,1,{}]"#,
            r#"{"model":1}"#,
            r#"{"model":"a","stream":1}"#,
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","mod\u0065l":"b"}"#,
            r#"{"model":"a"} x"#,
        ] {
            assert!(AskBody::parse(Bytes::from(bad), Ask::Chat, None).is_err(), "{bad}");
        }
    }

    const ASKS: [Ask; 8] = [
        Ask::Messages { beta: false },
        Ask::CountTokens { beta: true },
        Ask::Chat,
        Ask::Embeddings,
        Ask::Responses,
        Ask::Generate,
        Ask::StreamGenerate { sse: true },
        Ask::CountGemini,
    ];

    /// What goes upstream is, to another reader, what came, but for what must change.
    fn only_what_must_change(ask: Ask, asked: &AskBody, in_path: bool) {
        use serde_json::Value;
        // Numbers that no reader can hold pass as they came.
        let Ok(mut want) = serde_json::from_slice::<Value>(&asked.body) else { return };
        let made: Value =
            serde_json::from_slice(&asked.with_model("ours")).expect("JSON stays JSON");
        if !in_path {
            assert_eq!(want["model"], asked.model.as_str());
            want["model"] = "ours".into();
        }
        let streams = want["stream"] == true;
        assert!(matches!(ask, Ask::StreamGenerate { .. }) || !asked.stream || streams);
        let options = &mut want["stream_options"];
        if ask == Ask::Chat && asked.stream && (options.is_null() || options.is_object()) {
            options["include_usage"] = true.into();
        } else if options.is_null() && made.get("stream_options").is_none() {
            want.as_object_mut().expect("an object").remove("stream_options");
        }
        assert_eq!(made, want);
    }

    #[test]
    fn fuzz_model_body() {
        let seeds: [&[u8]; 6] = [
            br#" {"messages":[{"model":"inner"}], "model" : "a\u0062c" ,"max_tokens":5} "#,
            br#"{"model":"a","stream":true,"stream_options":{"x":1},"max_completion_tokens":3,"n":2}"#,
            br#"{"model":"a","stream":true,"stream_options":null}"#,
            br#"{"model":"m","max_output_tokens":9,"stream":false,"input":"x"}"#,
            br#"{"contents":[],"generationConfig":{"maxOutputTokens":4,"candidateCount":2}}"#,
            br#"{"model":"m","input":["a"]}"#,
        ];
        let words: [&[u8]; 9] = [
            b"\"model\":",
            b"\"stream\":",
            b"true",
            b"null",
            b"\"stream_options\":",
            b"\"mod\\u0065l\"",
            b"{}",
            b"\"max_tokens\":",
            b"\"include_usage\":true",
        ];
        fuzz::with_words("model-body", &seeds, &words, |bytes, dice| {
            let ask = ASKS[dice.below(ASKS.len())];
            let in_path = ask.wire() == crate::modelapi::wire::Wire::Gemini;
            let path = in_path.then_some("gemini");
            match AskBody::parse(Bytes::copy_from_slice(bytes), ask, path) {
                Err(failure) => {
                    assert_eq!(failure.status, 400);
                    let brief: String = failure.message.chars().take(60).collect();
                    fuzz::outcome(brief)
                }
                Ok(asked) => {
                    only_what_must_change(ask, &asked, in_path);
                    let (_, answer) = asked.estimate(ask, 7);
                    fuzz::outcome((
                        format!("{ask:?}"),
                        asked.stream,
                        asked.counts.is_some(),
                        answer != 7,
                    ))
                }
            }
        });
    }
}
