//! A request body, understood as far as routing, budgets and metering need. Pure.
//!
//! Only what must change does (the model's name, and in OpenAI's streams the wish for counts);
//! every other byte goes on as it came, so that prompt caches keep hitting.

use super::operation::Ask;
use super::outline::Fields;
use super::wire::Failure;
use bytes::Bytes;
use model::ModelConfig;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use std::ops::Range;

/// Longest model name; providers' longest have about 80 characters.
const MODEL_NAME_BYTES_MAX: usize = 256;
/// Bytes that count as one token when a prompt is estimated: below what texts have (about 4), so
/// that the estimate is rather too high.
const BYTES_PER_TOKEN: u64 = 3;
/// Most answers to one question that are reckoned with; providers allow fewer.
const ANSWERS_MAX: u64 = 128;

/// Longest `stream_options`; the known ones have thirty characters.
const STREAM_OPTIONS_BYTES_MAX: usize = 4 * 1024;

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
    /// What it wants its provider to do itself, by the names of agent files.
    pub(crate) provider_tools: BTreeSet<&'static str>,
    /// Whether the model reads more than stands here: a kept conversation, a fetched page.
    beyond: bool,
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
        let mut outline = Fields::read(&body, ask.wire()).map_err(bad)?;
        if let Some(kind) = outline.unknown_tool.take() {
            return Err(bad(format_args!(
                "its tool of the type {kind:?} is not known here, and may be the provider's own; \
                 leave it out"
            )));
        }
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
            (Ask::Chat, true) => with_counts(&body, outline.stream_options, place)?,
            _ => None,
        };
        let max_output = max_output(&outline, ask);
        let provider_tools = std::mem::take(&mut outline.provider_tools);
        let beyond = outline.continued || !provider_tools.is_empty();
        let body = body.clone();
        Ok(Self { model_at, counts, model, stream, max_output, provider_tools, beyond, body })
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
    pub(crate) fn estimate(&self, ask: Ask, model: &ModelConfig) -> (u64, u64) {
        if ask.is_count() {
            return (0, 0);
        }
        let mut prompt = (self.body.len() as u64).div_ceil(BYTES_PER_TOKEN);
        if self.beyond {
            // It cannot be more than the model holds.
            prompt = prompt.max(u64::from(model.context_tokens));
        }
        if ask == Ask::Embeddings {
            return (prompt, 0);
        }
        (prompt, self.max_output.unwrap_or(u64::from(model.max_tokens)))
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.body
    }
}

/// Only the fields of the format at hand count: others would be ignored by the provider. Where
/// two say the same thing the larger does.
fn max_output(outline: &Fields<'_>, ask: Ask) -> Option<u64> {
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
/// chunk, whose `choices` are empty, so it is passed on. Nothing of the options is kept or copied.
fn with_counts(
    body: &[u8],
    options: Option<&RawValue>,
    place: impl Fn(&RawValue) -> Range<usize>,
) -> Result<Option<(Range<usize>, String)>, Failure> {
    #[derive(Deserialize)]
    struct Options<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        include_usage: Option<&'a RawValue>,
    }
    let Some(raw) = options else {
        let at = body.iter().position(|&b| b == b'{').map_or(0, |at| at + 1);
        let comma = if body[at..].trim_ascii_start().first() == Some(&b'}') { "" } else { "," };
        let text = format!(r#""stream_options":{{"include_usage":true}}{comma}"#);
        return Ok(Some((at..at, text)));
    };
    let (text, at) = (raw.get(), place(raw));
    if text == "null" {
        return Ok(Some((at, r#"{"include_usage":true}"#.to_owned())));
    }
    if text.len() > STREAM_OPTIONS_BYTES_MAX {
        return Err(bad("its stream_options are longer than 4 KiB"));
    }
    // What is no object is the provider's to refuse.
    let Some(inner) = text.strip_prefix('{') else { return Ok(None) };
    let options: Options<'_> =
        serde_json::from_str(text).map_err(|e| bad(format_args!("its stream_options: {e}")))?;
    Ok(match options.include_usage {
        Some(wish) if wish.get() == "true" => None,
        Some(wish) => Some((place(wish), "true".to_owned())),
        None => {
            let comma = if inner.trim_ascii_start().starts_with('}') { "" } else { "," };
            Some((at.start + 1..at.start + 1, format!(r#""include_usage":true{comma}"#)))
        }
    })
}

/// `null` is there too, and must be replaced rather than doubled.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
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
                r#"{"stream_options":{"x":1,"include_usage":true},"stream":true,"model":"b"}"#,
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

    fn config() -> ModelConfig {
        ModelConfig {
            name: "m".into(),
            api: model::ModelApi::OpenAi,
            also: Vec::new(),
            base_url: String::new(),
            model: "m".into(),
            secret: None,
            login: None,
            script: None,
            max_tokens: 100,
            context_tokens: 10_000,
            fallbacks: Vec::new(),
            price: None,
        }
    }

    #[test]
    fn what_the_provider_adds_to_a_prompt_is_reserved_at_what_the_model_holds() {
        let of = |ask, body: &'static str| {
            AskBody::parse(Bytes::from(body), ask, None).expect(body).estimate(ask, &config()).0
        };
        let small = r#"{"model":"m","input":"hi"}"#;
        assert!(of(Ask::Responses, small) < 20);
        for body in [
            r#"{"model":"m","input":"hi","previous_response_id":"r"}"#,
            r#"{"model":"m","input":"hi","conversation":{"id":"c"}}"#,
            r#"{"model":"m","input":[{"type":"input_image","image_url":"https://e.org/i"}]}"#,
            r#"{"model":"m","tools":[{"type":"web_search"}]}"#,
        ] {
            assert_eq!(of(Ask::Responses, body), 10_000, "{body}");
        }
        assert!(of(Ask::Responses, r#"{"model":"m","previous_response_id":null}"#) < 20);
    }

    #[test]
    fn stream_options_are_bounded_and_never_a_tree() {
        let many = vec![r#"{"":0}"#; 1000].join(",");
        let big = format!(r#"{{"model":"a","stream":true,"stream_options":{{"a":[{many}]}}}}"#);
        let refused = AskBody::parse(Bytes::from(big), Ask::Chat, None);
        assert!(refused.is_err_and(|e| e.status == 400 && e.message.contains("stream_options")));
        for (text, want) in [
            (r#"{}"#, r#"{"include_usage":true}"#),
            (r#"{ "x":[{}] }"#, r#"{"include_usage":true, "x":[{}] }"#),
            (r#"{"include_\u0075sage":false}"#, r#"{"include_\u0075sage":true}"#),
        ] {
            let body = format!(r#"{{"model":"a","stream":true,"stream_options":{text}}}"#);
            let made = chat(&body).with_model("a");
            let want = format!(r#"{{"model":"a","stream":true,"stream_options":{want}}}"#);
            assert_eq!(made, want);
        }
        let twice = r#"{"include_usage":true,"include_usage":false}"#;
        let body = format!(r#"{{"model":"a","stream":true,"stream_options":{twice}}}"#);
        assert!(AskBody::parse(Bytes::from(body), Ask::Chat, None).is_err());
    }

    #[test]
    fn estimates_follow_what_is_asked_for_in_every_format() {
        let limits = config();
        let of = |ask, body: &'static str| {
            let path = matches!(ask, Ask::Generate).then_some("g");
            AskBody::parse(Bytes::from(body), ask, path).expect(body).estimate(ask, &limits).1
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
                    let (_, answer) = asked.estimate(ask, &config());
                    fuzz::outcome((
                        format!("{ask:?}"),
                        asked.stream,
                        asked.counts.is_some(),
                        answer != 100,
                    ))
                }
            }
        });
    }
}
