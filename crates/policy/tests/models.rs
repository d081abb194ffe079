//! `[models.*]`: formats, prices and fallbacks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

use model::{ModelApi, Price};
use nanoclaw_policy::Config;

const GOOD: &str = r#"schema = 1
[models.gpt]
api = ["openai", "responses"]
model = "gpt"
secret = "openai"
fallbacks = ["spare", "old"]
[models.gpt.price]
input = 1.25
cached_input = 0.125
output = 10
[models.spare]
api = "responses"
model = "spare"
base_url = "http://127.0.0.1:1"
[models.old]
api = "openai"
model = "old"
base_url = "http://127.0.0.1:1"
[models.gemini]
api = "gemini"
model = "g"
secret = "gemini"
"#;

#[test]
fn formats_prices_and_fallbacks_are_read() {
    let config = Config::parse("nanoclaw.toml", GOOD).expect("good");
    let gpt = &config.models["gpt"];
    assert_eq!((gpt.api, gpt.also.as_slice()), (ModelApi::OpenAi, &[ModelApi::Responses][..]));
    assert_eq!(gpt.base_url, "https://api.openai.com");
    let price = Price {
        input: 1_250_000,
        cached_input: 125_000,
        cache_write: 1_250_000,
        output: 10_000_000,
    };
    assert_eq!(gpt.price, Some(price));
    let granted: Vec<String> = config.models_for(gpt).into_iter().map(|m| m.name).collect();
    assert_eq!(granted, ["gpt", "spare", "old"]);
    let gemini = &config.models["gemini"];
    assert_eq!(gemini.base_url, "https://generativelanguage.googleapis.com");
    assert_eq!((gemini.builtin_api(), gemini.price), (None, None));
}

#[test]
fn mistakes_are_told_with_their_place() {
    let head = "schema = 1\n[models.a]\nmodel = 'm'\nsecret = 's'\n";
    for (more, part) in [
        ("api = []", "5:7"),
        ("api = ['openai', 'openai']", "twice"),
        ("api = ['openai', 'script']", "write it alone"),
        ("api = ['openai', 'grok']", "not known"),
        ("api = ['openai', 'gemini']", "base_url"),
        ("api = 1", "string"),
        ("api = 'openai'\nfallbacks = ['b']", "6:14"),
        ("api = 'openai'\nfallbacks = ['a']", "itself"),
        (
            "api = 'openai'\nfallbacks = ['c']\n[models.c]\napi = 'gemini'\nmodel = 'g'\nsecret = 's'",
            "none of this model's formats",
        ),
        (
            "api = 'openai'\nfallbacks = ['c']\n[models.c]\napi = 'script'\nscript = 'x.toml'",
            "scripted",
        ),
        ("api = 'openai'\n[models.a.price]\ninput = 1.0", "output"),
        ("api = 'openai'\n[models.a.price]\ninput = -1\noutput = 1", "7:9"),
        ("api = 'openai'\n[models.a.price]\ninput = 1e9\noutput = 1", "no price"),
        ("api = 'openai'\n[models.a.price]\ninput = nan\noutput = 1", "no price"),
        ("api = 'openai'\n[models.a.price]\ninputs = 1\noutput = 1", "input"),
    ] {
        let error = Config::parse("nanoclaw.toml", &format!("{head}{more}\n"));
        let error = error.expect_err(more).to_string();
        assert!(error.contains(part), "{more}: {error}");
    }
    let script = "schema = 1\n[models.a]\napi = 'script'\nscript = 'x.toml'\n[models.a.price]\ninput = 1\noutput = 1\n";
    assert!(
        Config::parse("nanoclaw.toml", script).expect_err("free").to_string().contains("price")
    );
}
