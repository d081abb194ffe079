//! `[logins.NAME]` of `nanoclaw.toml`: subscriptions that stand in place of a key. Those of the
//! providers' own names need no table.

use crate::error::{PolicyError, Problem, quote};
use crate::keys::{Keys, nearest};
use crate::mcp_section::check_url;
use crate::reader::{At, Section};
use model::{LoginConfig, LoginProvider};
use std::collections::BTreeMap;

/// The keys of one login.
pub(crate) const LOGIN: Keys = Keys {
    known: &["provider", "client_id", "authorize_url", "token_url", "redirect_url", "scope"],
    later: &[],
};

const PROVIDER: &str = "provider = \"chatgpt\"";
/// Longest name: it becomes a file name together with a suffix.
const NAME_CHARS_MAX: usize = 32;
/// Longest client name or scope.
const TEXT_BYTES_MAX: usize = 512;

/// Reads every login; those named like a provider are there without being written.
pub(crate) fn read(top: &Section<'_, '_>) -> Result<BTreeMap<String, LoginConfig>, PolicyError> {
    let built_in =
        LoginProvider::ALL.map(|p| (p.name().to_owned(), LoginConfig::built_in(p.name(), p)));
    let mut all = BTreeMap::from(built_in);
    for (name, section) in top.named("logins", &LOGIN)? {
        if !is_name(&name.value) {
            let why = format!("{} is not a login's name", quote(&name.value));
            let remedy = "use 1 to 32 lower-case letters, digits and inner '-'";
            return Err(Problem::bad("[logins]", why, remedy).at(&name.place));
        }
        let login = read_one(&name.value, &section)?;
        all.insert(name.value, login);
    }
    Ok(all)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_CHARS_MAX
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn provider_called(text: &str) -> Option<LoginProvider> {
    LoginProvider::ALL.into_iter().find(|p| p.name() == text)
}

fn read_one(name: &str, section: &Section<'_, '_>) -> Result<LoginConfig, PolicyError> {
    let written = section.parsed("provider", PROVIDER, |text| {
        provider_called(text).ok_or_else(|| {
            let why = format!("is {}, which is not known", quote(text));
            Problem::bad("provider", why, "write \"claude\" or \"chatgpt\"")
        })
    })?;
    let provider = match (written, provider_called(name)) {
        (Some(at), Some(own)) if at.value != own => {
            let why = format!("is not {}, though the login is called so", own.name());
            return Err(Problem::bad("provider", why, "name the login otherwise").at(&at.place));
        }
        (Some(at), _) => at.value,
        (None, Some(own)) => own,
        (None, None) => return Err(section.missing("provider", PROVIDER)),
    };
    let mut login = LoginConfig::built_in(name, provider);
    let client = section.parsed("client_id", "client_id = \"…\"", |t| plain("client_id", t))?;
    login.client_id = client.map(|at| at.value).or(login.client_id);
    for (key, field) in [
        ("authorize_url", &mut login.authorize_url),
        ("token_url", &mut login.token_url),
        ("redirect_url", &mut login.redirect_url),
    ] {
        let example = format!("{key} = \"https://login.example.org/{key}\"");
        if let Some(at) = section.parsed(key, &example, |text| check_url(key, text, true))? {
            *field = at.value;
        }
    }
    if let Some(at) = section.parsed("scope", "scope = \"a b\"", |t| plain("scope", t))? {
        login.scope = at.value;
    }
    Ok(login)
}

fn plain(key: &str, text: &str) -> Result<String, Problem> {
    let fits = !text.is_empty()
        && text.len() <= TEXT_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    let remedy = "write at most 512 printable characters";
    if fits { Ok(text.to_owned()) } else { Err(Problem::bad(key, "is not plain text", remedy)) }
}

/// The login that a model names.
pub(crate) fn named(
    at: &At<String>,
    logins: &BTreeMap<String, LoginConfig>,
) -> Result<LoginConfig, PolicyError> {
    if let Some(login) = logins.get(&at.value) {
        return Ok(login.clone());
    }
    let near = nearest(&at.value, logins.keys().map(String::as_str));
    let remedy = match near {
        Some(near) => format!("did you mean {near:?}?"),
        None => "write \"claude\", \"chatgpt\", or the NAME of a [logins.NAME]".to_owned(),
    };
    let why = format!("is {}, which is no login", quote(&at.value));
    Err(Problem::bad("login", why, remedy).at(&at.place))
}

#[cfg(test)]
mod tests {
    use crate::Config;
    use model::LoginProvider;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse("nanoclaw.toml", &format!("schema = 1\n{text}\n")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_model_may_have_a_login_in_place_of_a_secret() {
        let config = parse(
            "[models.c]\napi = \"anthropic\"\nmodel = \"m\"\nlogin = \"claude\"\n\
             [models.g]\napi = \"responses\"\nmodel = \"m\"\nlogin = \"work\"\n\
             [logins.work]\nprovider = \"chatgpt\"\ntoken_url = \"http://127.0.0.1:9/token\"\n\
             client_id = \"me\"",
        );
        let config = config.expect("valid");
        let claude = &config.models["c"];
        assert_eq!(claude.base_url, "https://api.anthropic.com");
        assert_eq!(claude.login.as_ref().map(|l| l.client_id.clone()), Some(None));
        let work = &config.models["g"];
        assert_eq!(work.base_url, "https://api.openai.com");
        let login = work.login.as_ref().expect("a login");
        assert_eq!((login.provider, login.name.as_str()), (LoginProvider::ChatGpt, "work"));
        assert_eq!(login.token_url, "http://127.0.0.1:9/token");
        assert_eq!(login.client_id.as_deref(), Some("me"));
        assert!(config.logins.contains_key("chatgpt"));
    }

    #[test]
    fn what_is_not_exactly_a_login_is_refused() {
        for bad in [
            "[models.c]\napi = \"anthropic\"\nmodel = \"m\"\nlogin = \"other\"",
            "[models.c]\napi = \"anthropic\"\nmodel = \"m\"\nlogin = \"claude\"\nsecret = \"a\"",
            "[models.c]\napi = \"openai\"\nmodel = \"m\"\nlogin = \"claude\"",
            "[models.c]\napi = \"anthropic\"\nmodel = \"m\"\nlogin = \"chatgpt\"",
            "[models.c]\napi = \"script\"\nscript = \"a.toml\"\nlogin = \"claude\"",
            "[logins.work]\nclient_id = \"x\"",
            "[logins.Work]\nprovider = \"claude\"",
            "[logins.claude]\nprovider = \"chatgpt\"",
            "[logins.claude]\ntoken_url = \"http://login.example.org/token\"",
            "[logins.claude]\ntoken_url = \"https://login.example.org/token?key=1\"",
            "[logins.claude]\nclient_secret = \"x\"",
            "[logins.claude]\nscope = \"\"",
            "[vault]\nkey = \"elsewhere\"",
            "[vault]\nkeys = \"file\"",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let kept = parse("[vault]\nkey = \"keyring\"").expect("valid").vault_key;
        assert_eq!(kept, Some(model::KeyPlace::Keyring));
    }
}
