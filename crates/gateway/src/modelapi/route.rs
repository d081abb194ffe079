//! Which model a request means, and the request as that model's server should see it. Pure.

use super::wire::{Failure, Wire};
use crate::endpoint::Endpoint;
use crate::script::Script;
use bytes::Bytes;
use model::{ModelApi, ModelConfig};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;

/// Longest model name; providers' longest have about 80 characters.
const MODEL_NAME_BYTES_MAX: usize = 256;

/// Where a model's answers come from.
pub(crate) enum Backend {
    Http(Endpoint),
    Script(Arc<Script>),
}

/// A granted model, checked when the door was opened.
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) backend: Backend,
}

impl Model {
    fn speaks(&self, wire: Wire) -> bool {
        self.config.api == ModelApi::Script || self.config.api == wire.api()
    }

    fn is_called(&self, name: &str) -> bool {
        self.config.name == name
            || self.config.model == name
            || matches!(&self.backend, Backend::Script(script) if script.model_name() == name)
    }
}

/// The parts of a request body that routing needs; the rest is passed on byte by byte.
#[derive(Deserialize)]
struct Outline<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    stream: Option<bool>,
}

/// A request body, understood as far as needed.
pub(crate) struct AskBody {
    body: Bytes,
    /// Where the value of `"model"` stands in it.
    model_at: std::ops::Range<usize>,
    pub(crate) model: String,
    pub(crate) stream: bool,
}

impl AskBody {
    /// Finds model and stream. Duplicate keys are refused: two readers could choose differently.
    pub(crate) fn parse(body: Bytes) -> Result<Self, Failure> {
        let bad = |why: String| Failure::new(400, format!("the request body is not usable: {why}"));
        let outline: Outline<'_> = serde_json::from_slice(&body).map_err(|e| bad(e.to_string()))?;
        let raw = outline.model.ok_or_else(|| bad("it names no model".into()))?;
        let model: String =
            serde_json::from_str(raw.get()).map_err(|_| bad("its model is not a string".into()))?;
        if model.len() > MODEL_NAME_BYTES_MAX {
            return Err(bad("its model's name is too long".into()));
        }
        // The raw value borrows from the body, so its place follows from the two addresses.
        let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
        let model_at = start..start + raw.get().len();
        let stream = outline.stream.unwrap_or(false);
        Ok(Self { body, model_at, model, stream })
    }

    /// The body with the provider's own name for the model; every other byte as it was, so that
    /// prompt caches keep hitting.
    pub(crate) fn with_model(&self, model: &str) -> Bytes {
        let name = serde_json::Value::from(model).to_string();
        let mut out = Vec::with_capacity(self.body.len() + name.len());
        out.extend_from_slice(&self.body[..self.model_at.start]);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&self.body[self.model_at.end..]);
        Bytes::from(out)
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.body
    }
}

/// Chooses the model: one called so that speaks the format, else the default if that does.
pub(crate) fn choose<'a>(
    models: &'a [Model],
    default: Option<usize>,
    name: &str,
    wire: Wire,
) -> Result<&'a Model, Failure> {
    if let Some(found) = models.iter().find(|m| m.is_called(name) && m.speaks(wire)) {
        return Ok(found);
    }
    let (asked, path) = (wire.name(), wire.path());
    if let Some(other) = models.iter().find(|m| m.is_called(name)) {
        let name = &other.config.name;
        let right = if wire == Wire::Anthropic { Wire::OpenAi } else { Wire::Anthropic }.path();
        let why = format!(
            "the model {name:?} does not speak the {asked} format of {path}; ask it at {right}, or \
             configure a model with api = \"{asked}\""
        );
        return Err(Failure::new(400, why));
    }
    match default.and_then(|at| models.get(at)) {
        Some(model) if model.speaks(wire) => Ok(model),
        Some(model) => Err(Failure::new(
            400,
            format!(
                "no model named {name:?} is granted, and the default model {:?} does not speak the \
                 {asked} format of {path}; configure one with api = \"{asked}\"",
                model.config.name
            ),
        )),
        None => Err(Failure::new(
            404,
            format!(
                "no model named {name:?} is granted to this agent; add a [models.NAME] to nanoclaw.toml and name it in the agent's file"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_model_s_name_changes_in_a_body() {
        let body = r#" {"messages":[{"model":"inner"}], "model" : "a\u0062c" ,"stream":true} "#;
        let ask = AskBody::parse(Bytes::from(body)).expect("valid");
        assert_eq!((ask.model.as_str(), ask.stream), ("abc", true));
        assert_eq!(
            ask.with_model("x\"y"),
            r#" {"messages":[{"model":"inner"}], "model" : "x\"y" ,"stream":true} "#
        );
    }

    #[test]
    fn ambiguous_or_broken_bodies_are_refused() {
        for bad in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            r#"{"model":1}"#,
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","mod\u0065l":"b"}"#,
            r#"{"model":"a"} x"#,
        ] {
            assert!(AskBody::parse(Bytes::from(bad)).is_err(), "{bad}");
        }
    }
}
