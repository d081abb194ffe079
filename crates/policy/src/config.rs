//! `nanoclaw.toml`: the models there are, what they cost, and which agent answers by default.

use crate::credential::known_form;
use crate::error::{Place, PolicyError, Problem, quote};
use crate::keys::{self, nearest};
use crate::reader::{At, Section, Source};
use crate::url::{BaseUrl, parse_base_url};
use crate::witness_section::Witnesses;
use model::{
    AgentName, KeyPlace, LoginConfig, LoginProvider, McpServer, ModelApi, ModelConfig, Price,
};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Answer length asked for when nothing is written: enough for a file, little enough that a
/// runaway answer stays cheap.
const MAX_TOKENS_DEFAULT: u32 = 8_192;

/// Context assumed when nothing is written: what current hosted models have at least. Servers
/// with less must say so, or they refuse long conversations.
const CONTEXT_TOKENS_DEFAULT: u32 = 128_000;

/// Largest token figure accepted; beyond it is a typing error.
const TOKENS_MAX: i64 = 100_000_000;

/// Dearest price accepted, USD per million tokens; beyond it is a typing error.
const PRICE_USD_MAX: f64 = 10_000.0;

/// Longest name of a model or secret, in characters.
const NAME_CHARS_MAX: usize = 64;

/// Something allowed that a person should know about. Shown at start, never fatal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where it was written.
    pub place: Place,
    /// What it means.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: warning: {}", self.place, self.text)
    }
}

/// `nanoclaw.toml`, resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The agent used where none is named.
    pub default_agent: Option<AgentName>,
    /// The models by name.
    pub models: BTreeMap<String, ModelConfig>,
    /// The logins by name, the built-in ones among them.
    pub logins: BTreeMap<String, LoginConfig>,
    /// Where the vault's key is to be kept, if that is written.
    pub vault_key: Option<KeyPlace>,
    /// Whether texts of agents stand beside the log however short they are.
    pub texts_beside: bool,
    /// The servers of tools by name.
    pub mcp: BTreeMap<String, McpServer>,
    /// Who countersigns the record.
    pub witnesses: Witnesses,
    /// What a person should know.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Parses the text of a `nanoclaw.toml`; `file` is how errors call it.
    ///
    /// # Errors
    /// With file, line and column, for everything that is not exactly understood.
    pub fn parse(file: &str, text: &str) -> Result<Self, PolicyError> {
        let source = Source { file, text };
        let root = source.parse()?;
        let top = Section::top(&source, &root, &keys::CONFIG)?;
        let default_agent = top.parsed("default_agent", "default_agent = \"helper\"", |name| {
            AgentName::parse(name).map_err(|e| {
                Problem::bad("default_agent", format!("is {}: {}", quote(name), e.why), RENAME)
            })
        })?;
        let mut config =
            Self { default_agent: default_agent.map(|at| at.value), ..Self::default() };
        config.mcp = crate::mcp_section::read(&top)?;
        config.logins = crate::login_section::read(&top)?;
        config.vault_key = read_vault(&top)?;
        config.texts_beside = read_audit(&top)?;
        config.witnesses = crate::witness_section::read(&top)?;
        for (name, section) in top.named("models", &keys::MODEL)? {
            if !is_name(&name.value) {
                let why = format!("{} is not a model's name", quote(&name.value));
                return Err(Problem::bad("[models]", why, RENAME).at(&name.place));
            }
            let mut model = read_model(&name.value, &section, &config.logins)?;
            if model.api != ModelApi::Script {
                read_server(&section, &mut model, &mut config.warnings)?;
            }
            config.models.insert(name.value, model);
        }
        for (name, section) in top.named("models", &keys::MODEL)? {
            let fallbacks = read_fallbacks(&name.value, &section, &config.models)?;
            if let Some(model) = config.models.get_mut(&name.value) {
                model.fallbacks = fallbacks;
            }
        }
        Ok(config)
    }

    /// What an agent with that model is granted: it, and those that may answer in its place.
    #[must_use]
    pub fn models_for(&self, model: &ModelConfig) -> Vec<ModelConfig> {
        let others = model.fallbacks.iter().filter_map(|name| self.models.get(name));
        std::iter::once(model).chain(others).cloned().collect()
    }

    /// The model of that name.
    ///
    /// # Errors
    /// Names the nearest known model and what to write.
    pub(crate) fn require_model(&self, name: &At<String>) -> Result<(), PolicyError> {
        if self.models.contains_key(&name.value) {
            return Ok(());
        }
        let near = nearest(&name.value, self.models.keys().map(String::as_str));
        let remedy = match near {
            Some(near) => format!("did you mean {near:?}?"),
            None => "add it to nanoclaw.toml, or name one that is there".to_owned(),
        };
        let why = format!("is {}, but nanoclaw.toml has no such [models.*]", quote(&name.value));
        Err(Problem::bad("model", why, remedy).at(&name.place))
    }
}

const RENAME: &str = "use 1 to 64 lower-case letters, digits and inner '-'";

/// Names of models and secrets become parts of records, file names and command lines.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_CHARS_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.starts_with(['-', '.'])
}

fn read_model(
    name: &str,
    section: &Section<'_, '_>,
    logins: &BTreeMap<String, LoginConfig>,
) -> Result<ModelConfig, PolicyError> {
    let (api, also) = read_apis(section)?;
    let max = section.integer_in("max_tokens", "max_tokens = 8192", 1..=TOKENS_MAX)?;
    let context =
        section.integer_in("context_tokens", "context_tokens = 128000", 1..=TOKENS_MAX)?;
    let (max_tokens, context_tokens) = (
        or_default(max.as_ref(), MAX_TOKENS_DEFAULT),
        or_default(context.as_ref(), CONTEXT_TOKENS_DEFAULT),
    );
    if let Some(at) = max.as_ref().or(context.as_ref()).filter(|_| max_tokens >= context_tokens) {
        let why = format!("({max_tokens}) leaves no room in context_tokens ({context_tokens})");
        return Err(Problem::bad("max_tokens", why, "write a smaller max_tokens").at(&at.place));
    }
    let mut config = ModelConfig {
        name: name.to_owned(),
        api,
        also,
        base_url: String::new(),
        model: String::new(),
        secret: None,
        login: None,
        script: None,
        max_tokens,
        context_tokens,
        fallbacks: Vec::new(),
        price: read_price(section)?,
    };
    match api {
        ModelApi::Script => read_script(section, &mut config)?,
        _ => read_key(section, &mut config, logins)?,
    }
    Ok(config)
}

/// `api`: one format, or a list of which the first is the built-in agent's.
fn read_apis(section: &Section<'_, '_>) -> Result<(ModelApi, Vec<ModelApi>), PolicyError> {
    const EXAMPLE: &str = "api = \"anthropic\"";
    let known = |text: &str| {
        let all = [ModelApi::Anthropic, ModelApi::OpenAi, ModelApi::Responses, ModelApi::Gemini];
        let found = all.into_iter().chain([ModelApi::Script]).find(|api| api.name() == text);
        found.ok_or_else(|| {
            let why = format!("is {}, which is not known", quote(text));
            let remedy = "write \"anthropic\", \"openai\", \"responses\", \"gemini\" or \"script\"";
            Problem::bad("api", why, remedy)
        })
    };
    if !section.is_array("api") {
        let api = section.parsed("api", EXAMPLE, known)?;
        return Ok((api.ok_or_else(|| section.missing("api", EXAMPLE))?.value, Vec::new()));
    }
    let list = section.strings("api", "api = [\"openai\", \"responses\"]")?;
    let list = list.ok_or_else(|| section.missing("api", EXAMPLE))?;
    let mut apis: Vec<ModelApi> = Vec::new();
    for item in &list.value {
        let bad = |why: &str, remedy: &str| Problem::bad("api", why, remedy).at(&item.place);
        let api = known(&item.value).map_err(|p| p.at(&item.place))?;
        if api == ModelApi::Script {
            return Err(bad("lists \"script\", which speaks every format", "write it alone"));
        }
        if apis.contains(&api) {
            return Err(bad("lists a format twice", "write it once"));
        }
        apis.push(api);
    }
    if apis.is_empty() {
        return Err(Problem::bad("api", "is an empty list", EXAMPLE).at(&list.place));
    }
    let first = apis.remove(0);
    Ok((first, apis))
}

/// `[models.NAME.price]`, in USD per million tokens.
fn read_price(section: &Section<'_, '_>) -> Result<Option<Price>, PolicyError> {
    let Some(table) = section.section("price", &keys::PRICE)? else { return Ok(None) };
    let read = |key: &'static str| -> Result<Option<u64>, PolicyError> {
        let example = format!("{key} = 3.0");
        let Some(found) = table.number(key, &example)? else { return Ok(None) };
        if !(0.0..=PRICE_USD_MAX).contains(&found.value) {
            let why = format!("is no price from 0 to {PRICE_USD_MAX} USD per million tokens");
            return Err(Problem::bad(key, why, format!("write e.g. `{example}`")).at(&found.place));
        }
        // At most 10^10, so exact in both types.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let micro = (found.value * 1e6).round() as u64;
        Ok(Some(micro))
    };
    let input = read("input")?.ok_or_else(|| table.missing("input", "input = 3.0"))?;
    let output = read("output")?.ok_or_else(|| table.missing("output", "output = 15.0"))?;
    // Where caching has no price of its own it costs what other input does.
    let cached_input = read("cached_input")?.unwrap_or(input);
    let cache_write = read("cache_write")?.unwrap_or(input);
    Ok(Some(Price { input, cached_input, cache_write, output }))
}

fn read_fallbacks(
    own: &str,
    section: &Section<'_, '_>,
    models: &BTreeMap<String, ModelConfig>,
) -> Result<Vec<String>, PolicyError> {
    let Some(list) = section.strings("fallbacks", "fallbacks = [\"other\"]")? else {
        return Ok(Vec::new());
    };
    let mut found: Vec<String> = Vec::new();
    for item in list.value {
        let bad =
            |why: String, remedy: &str| Err(Problem::bad("fallbacks", why, remedy).at(&item.place));
        let named = quote(&item.value);
        let Some(other) = models.get(&item.value) else {
            return bad(format!("names {named}, which nanoclaw.toml has not"), "name a [models.*]");
        };
        if item.value == own || found.contains(&item.value) {
            return bad(format!("names {named} itself, or twice"), "name other models, once each");
        }
        let formats = |m: &ModelConfig| std::iter::once(m.api).chain(m.also.clone()).collect();
        let mine: Vec<ModelApi> = models.get(own).map(formats).unwrap_or_default();
        // A script would answer as if it were the model, unnoticed.
        if mine.contains(&ModelApi::Script) || other.api == ModelApi::Script {
            return bad("has a scripted model in it".into(), "scripts have and are no fallbacks");
        }
        if !mine.iter().any(|api| other.speaks(*api)) {
            let why = format!("names {named}, which speaks none of this model's formats");
            return bad(why, "name a model with the same api");
        }
        found.push(item.value);
    }
    Ok(found)
}

fn or_default(found: Option<&At<u64>>, default: u32) -> u32 {
    found.and_then(|at| u32::try_from(at.value).ok()).unwrap_or(default)
}

fn read_script(section: &Section<'_, '_>, config: &mut ModelConfig) -> Result<(), PolicyError> {
    if config.price.take().is_some() {
        let why = "has no meaning for api = \"script\"";
        return Err(Problem::bad("price", why, "remove it").at(&section.place));
    }
    for key in ["base_url", "model", "secret", "login"] {
        if let Some(found) = section.string(key, "script = \"demo.toml\"")? {
            let problem = Problem::bad(key, "has no meaning for api = \"script\"", "remove it");
            return Err(problem.at(&found.place));
        }
    }
    let example = "script = \"demo.toml\"";
    let script = section.string("script", example)?;
    let script = script.ok_or_else(|| section.missing("script", example))?;
    let path = PathBuf::from(script.value);
    let stem = path.file_stem().and_then(|s| s.to_str()).filter(|s| !s.is_empty());
    let Some(stem) = stem.filter(|_| !script.value.contains('\0')) else {
        return Err(Problem::bad("script", "names no file", example).at(&script.place));
    };
    config.model = stem.to_owned();
    config.script = Some(path);
    Ok(())
}

fn read_server(
    section: &Section<'_, '_>,
    config: &mut ModelConfig,
    warnings: &mut Vec<Warning>,
) -> Result<(), PolicyError> {
    if let Some(found) = section.string("script", "api = \"script\"")? {
        let why = "has a meaning only for api = \"script\"";
        return Err(Problem::bad("script", why, "remove it").at(&found.place));
    }
    let example = "model = \"NAME-OF-THE-PROVIDER\"";
    let model = section.parsed("model", example, |text| {
        let ok =
            !text.is_empty() && text.len() <= 200 && text.bytes().all(|b| b.is_ascii_graphic());
        let remedy = "write the provider's own name of the model";
        if ok { Ok(text.to_owned()) } else { Err(Problem::bad("model", "is not a name", remedy)) }
    })?;
    config.model = model.ok_or_else(|| section.missing("model", example))?.value;
    let written =
        section.parsed("base_url", "base_url = \"https://api.example.org\"", parse_base_url)?;
    match written {
        Some(At { place, value: BaseUrl { text, plain } }) => {
            if let Some(why) = plain {
                warnings.push(Warning { place, text: format!("base_url {text}: {why}") });
            }
            config.base_url = text;
        }
        None if config.login.is_some() => {
            let url = config.login.as_ref().map(|login| login.provider.base_url());
            config.base_url = url.unwrap_or_default().to_owned();
        }
        None => {
            let (url, line) = own_server(config.api);
            if config.also.iter().any(|api| own_server(*api).0 != url) {
                // Each of the formats has another server of its own.
                return Err(section.missing("base_url", "base_url = \"https://api.example.org\""));
            }
            if config.secret.is_none() {
                return Err(section.missing("secret", line));
            }
            config.base_url = url.to_owned();
        }
    }
    Ok(())
}

/// What opens the server: a secret, a login, or nothing.
fn read_key(
    section: &Section<'_, '_>,
    config: &mut ModelConfig,
    logins: &BTreeMap<String, LoginConfig>,
) -> Result<(), PolicyError> {
    let read = |text: &str| secret_name(text).map_err(|p| p.named(&config.name));
    let secret = section.parsed("secret", "secret = \"anthropic\"", read)?;
    config.secret = secret.map(|at| at.value);
    let owned = |text: &str| Ok(text.to_owned());
    let Some(at) = section.parsed("login", "login = \"claude\"", owned)? else { return Ok(()) };
    let bad = |why: &str, remedy: &str| Err(Problem::bad("login", why, remedy).at(&at.place));
    if config.secret.is_some() {
        return bad("stands beside secret", "keep login or secret");
    }
    let login = crate::login_section::named(&at, logins)?;
    let (spoken, remedy) = match login.provider {
        LoginProvider::Claude => (ModelApi::Anthropic, "write api = \"anthropic\""),
        LoginProvider::ChatGpt => (ModelApi::Responses, "write api = \"responses\""),
    };
    if config.api != spoken || !config.also.is_empty() {
        return bad("is of a provider that speaks another format", remedy);
    }
    config.login = Some(login);
    Ok(())
}

/// `[vault] key`.
fn read_vault(top: &Section<'_, '_>) -> Result<Option<KeyPlace>, PolicyError> {
    let Some(table) = top.section("vault", &keys::VAULT)? else { return Ok(None) };
    let key = table.parsed("key", "key = \"file\"", |text| {
        KeyPlace::ALL.into_iter().find(|place| place.name() == text).ok_or_else(|| {
            let why = format!("is {}, which is no place for a key", quote(text));
            Problem::bad("key", why, "write \"file\", \"keyring\" or \"systemd\"")
        })
    })?;
    Ok(key.map(|at| at.value))
}

/// `[audit] texts`.
fn read_audit(top: &Section<'_, '_>) -> Result<bool, PolicyError> {
    let Some(table) = top.section("audit", &keys::AUDIT)? else { return Ok(false) };
    let texts = table.parsed("texts", "texts = \"beside\"", |text| match text {
        "inline" => Ok(false),
        "beside" => Ok(true),
        other => {
            let why = format!("is {}, which is no place for texts", quote(other));
            Err(Problem::bad("texts", why, "write \"inline\" or \"beside\""))
        }
    })?;
    Ok(texts.is_some_and(|texts| texts.value))
}

/// The server of whoever defined the format, and the line that gives its key.
fn own_server(api: ModelApi) -> (&'static str, &'static str) {
    match api {
        ModelApi::OpenAi | ModelApi::Responses => ("https://api.openai.com", "secret = \"openai\""),
        ModelApi::Gemini => ("https://generativelanguage.googleapis.com", "secret = \"gemini\""),
        _ => ("https://api.anthropic.com", "secret = \"anthropic\""),
    }
}

/// The name of a secret in the vault. Whoever pastes the secret itself is told so, without
/// repeating it.
pub(crate) fn secret_name(text: &str) -> Result<String, Problem> {
    if let Some(why) = known_form(text) {
        return Err(Problem::PastedSecret { key: "secret", name: "NAME".into(), why });
    }
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err(Problem::bad(
        "secret",
        "is not the name of a secret",
        "write the NAME that was given to `nanoclaw secret set NAME`: letters, digits, '-', '_', '.'",
    ))
}
