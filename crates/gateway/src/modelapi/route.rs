//! Which model a request means, and which others may answer in its place. Pure.

use super::operation::Ask;
use super::wire::{Failure, WIRES};
use crate::endpoint::Endpoint;
use crate::script::Script;
use model::ModelConfig;
use std::sync::Arc;

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
    fn is_called(&self, name: &str) -> bool {
        self.config.name == name
            || self.config.model == name
            || matches!(&self.backend, Backend::Script(script) if script.model_name() == name)
    }
}

/// Chooses the model: one called so that speaks the format, else the default if that does. An
/// embedding is never made by another model than the one named: its numbers would mean nothing.
pub(crate) fn choose<'a>(
    models: &'a [Model],
    default: Option<usize>,
    name: &str,
    ask: Ask,
) -> Result<&'a Model, Failure> {
    let wire = ask.wire();
    let speaks = |m: &Model| m.config.speaks(wire.api());
    // An exact NAME goes before the providers' names, which several models may share.
    let named = |m: &&Model| m.config.name == name && speaks(m);
    let called = |m: &&Model| m.is_called(name) && speaks(m);
    if let Some(found) = models.iter().find(named).or_else(|| models.iter().find(called)) {
        return Ok(found);
    }
    let (asked, path) = (wire.name(), wire.path());
    if let Some(other) = models.iter().find(|m| m.is_called(name)) {
        let name = &other.config.name;
        let right: Vec<&str> =
            WIRES.iter().filter(|w| other.config.speaks(w.api())).map(|w| w.path()).collect();
        let why = format!(
            "the model {name:?} does not speak the {asked} format of {path}; ask it at {}, or \
             configure a model with api = \"{asked}\"",
            right.join(" or ")
        );
        return Err(Failure::new(400, why));
    }
    match default.and_then(|at| models.get(at)).filter(|_| ask != Ask::Embeddings) {
        Some(model) if speaks(model) => Ok(model),
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
                "no model named {name:?} is granted to this agent; add a [models.NAME] to \
                 nanoclaw.toml and name it in the agent's file"
            ),
        )),
    }
}

/// The chosen model and those that may answer in its place, in order: granted ones that speak the
/// same format. Embeddings have none.
pub(crate) fn in_order<'a>(models: &'a [Model], first: &'a Model, ask: Ask) -> Vec<&'a Model> {
    let mut all = vec![first];
    if ask == Ask::Embeddings {
        return all;
    }
    for name in &first.config.fallbacks {
        let found = models.iter().find(|m| m.config.name == *name);
        if let Some(model) = found.filter(|m| m.config.speaks(ask.wire().api()))
            && !all.iter().any(|m| std::ptr::eq(*m, model))
        {
            all.push(model);
        }
    }
    all
}
