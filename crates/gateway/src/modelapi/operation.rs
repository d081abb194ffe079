//! Method and path of a request at the door → what is asked of which kind of model. Pure.

use super::wire::Wire;

/// What is asked of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// `POST /v1/messages`; whether with `?beta=true`.
    Messages { beta: bool },
    /// `POST /v1/messages/count_tokens`.
    CountTokens { beta: bool },
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// `POST /v1/responses`.
    Responses,
    /// `POST /v1beta/models/M:generateContent`, or under `/v1`.
    Generate,
    /// `POST /v1beta/models/M:streamGenerateContent`; with `alt=sse` as events, without as one
    /// JSON array, which is passed on when it is complete.
    StreamGenerate { sse: bool },
    /// `POST /v1beta/models/M:countTokens`.
    CountGemini,
}

/// What a path and method mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A question; Gemini names the model in the path.
    Ask {
        ask: Ask,
        model: Option<String>,
    },
    /// `GET /v1/models`, or of Gemini `GET /v1beta/models`.
    ListModels(Listing),
    /// `GET /v1/models/ID`, or of Gemini `GET /v1beta/models/ID`.
    GetModel(Listing, String),
    /// `HEAD` or `GET /api/hello`: Claude Code asks, and 404 is the answer it expects.
    Hello,
    /// Known path, other method; the value is the one allowed.
    WrongMethod(&'static str),
    Unknown,
}

/// The shape of a list of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    /// One that clients of Anthropic and OpenAI accept.
    Common,
    Gemini,
}

impl Ask {
    pub(crate) fn wire(self) -> Wire {
        match self {
            Self::Messages { .. } | Self::CountTokens { .. } => Wire::Anthropic,
            Self::Chat | Self::Embeddings => Wire::OpenAi,
            Self::Responses => Wire::Responses,
            Self::Generate | Self::StreamGenerate { .. } | Self::CountGemini => Wire::Gemini,
        }
    }

    /// Whether the answer is only a count, which no provider charges for.
    pub(crate) fn is_count(self) -> bool {
        matches!(self, Self::CountTokens { .. } | Self::CountGemini)
    }

    /// Path and query upstream, after the endpoint's prefix; `model` is the provider's name.
    pub(crate) fn path(self, model: &str) -> String {
        match self {
            Self::Messages { beta: false } => "/v1/messages".into(),
            Self::Messages { beta: true } => "/v1/messages?beta=true".into(),
            Self::CountTokens { beta: false } => "/v1/messages/count_tokens".into(),
            Self::CountTokens { beta: true } => "/v1/messages/count_tokens?beta=true".into(),
            Self::Chat => "/v1/chat/completions".into(),
            Self::Embeddings => "/v1/embeddings".into(),
            Self::Responses => "/v1/responses".into(),
            Self::Generate => gemini_path(model, "generateContent"),
            Self::StreamGenerate { sse: true } => {
                gemini_path(model, "streamGenerateContent?alt=sse")
            }
            Self::StreamGenerate { sse: false } => gemini_path(model, "streamGenerateContent"),
            Self::CountGemini => gemini_path(model, "countTokens"),
        }
    }
}

fn gemini_path(model: &str, method: &str) -> String {
    let mut path = String::from("/v1beta/models/");
    for b in model.bytes() {
        // Unreserved characters (RFC 3986 §2.3) stand for themselves; nothing else may end the
        // segment.
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            path.push(char::from(b));
        } else {
            path.push_str(&format!("%{b:02X}"));
        }
    }
    path.push(':');
    path.push_str(method);
    path
}

/// Reads method and target. Query keys other than `beta=true` and `alt=sse` are dropped: none is
/// needed, and a key in a query would be a credential.
pub(crate) fn operation(method: &str, target: &str) -> Operation {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let has = |wanted: &str| query.split('&').any(|pair| pair == wanted);
    let beta = has("beta=true");
    let ask = |ask| match method {
        "POST" => Operation::Ask { ask, model: None },
        _ => Operation::WrongMethod("POST"),
    };
    let get = |operation| if method == "GET" { operation } else { Operation::WrongMethod("GET") };
    match path {
        "/v1/messages" => ask(Ask::Messages { beta }),
        "/v1/messages/count_tokens" => ask(Ask::CountTokens { beta }),
        "/v1/chat/completions" => ask(Ask::Chat),
        "/v1/embeddings" => ask(Ask::Embeddings),
        "/v1/responses" => ask(Ask::Responses),
        "/v1/models" => get(Operation::ListModels(Listing::Common)),
        "/v1beta/models" => get(Operation::ListModels(Listing::Gemini)),
        "/api/hello" if matches!(method, "GET" | "HEAD") => Operation::Hello,
        _ => {
            if let Some(rest) = path.strip_prefix("/v1beta/models/") {
                return gemini(method, rest, has("alt=sse"));
            }
            match path.strip_prefix("/v1/models/") {
                // Google's newer clients leave the beta out; what is asked is the same.
                Some(rest) if method == "POST" && rest.contains(':') => {
                    gemini(method, rest, has("alt=sse"))
                }
                Some(id) if !id.is_empty() => {
                    get(Operation::GetModel(Listing::Common, id.to_owned()))
                }
                _ => Operation::Unknown,
            }
        }
    }
}

fn gemini(method: &str, rest: &str, sse: bool) -> Operation {
    let (model, verb) = match rest.rsplit_once(':') {
        Some((model, verb)) if method == "POST" => (model, Some(verb)),
        _ => (rest, None),
    };
    let Some(model) = unescaped(model).filter(|m| !m.is_empty()) else { return Operation::Unknown };
    let ask = match verb {
        Some("generateContent") => Ask::Generate,
        Some("streamGenerateContent") => Ask::StreamGenerate { sse },
        Some("countTokens") => Ask::CountGemini,
        Some(_) => return Operation::Unknown,
        None if method == "GET" => return Operation::GetModel(Listing::Gemini, model),
        None => return Operation::WrongMethod("POST"),
    };
    Operation::Ask { ask, model: Some(model) }
}

/// Undoes percent-encoding (RFC 3986 §2.1).
fn unescaped(text: &str) -> Option<String> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        if !digits.bytes().all(|d| d.is_ascii_hexdigit()) {
            return None;
        }
        out.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gemini_s_paths_carry_model_and_method() {
        let (model, ask) = match operation("POST", "/v1beta/models/a%2Fb%3A1:countTokens?key=x") {
            Operation::Ask { ask, model: Some(model) } => (model, ask),
            other => panic!("{other:?}"),
        };
        assert_eq!((model.as_str(), ask), ("a/b:1", Ask::CountGemini));
        assert_eq!(ask.path(&model), "/v1beta/models/a%2Fb%3A1:countTokens");
        let stream = operation("POST", "/v1beta/models/g:streamGenerateContent?alt=sse&key=x");
        let ask = Ask::StreamGenerate { sse: true };
        assert_eq!(stream, Operation::Ask { ask, model: Some("g".into()) });
        assert_eq!(ask.path("g"), "/v1beta/models/g:streamGenerateContent?alt=sse");
        for version in ["v1", "v1beta"] {
            let asked = operation("POST", &format!("/{version}/models/g:generateContent"));
            assert_eq!(asked, Operation::Ask { ask: Ask::Generate, model: Some("g".into()) });
        }
        assert_eq!(operation("POST", "/v1/models/g"), Operation::WrongMethod("GET"));
        let listed = Operation::GetModel(Listing::Common, "g:1".into());
        assert_eq!(operation("GET", "/v1/models/g:1"), listed);
        for odd in
            ["%zz:generateContent", "%2:generateContent", ":generateContent", "g:tune", "%ff"]
        {
            let target = format!("/v1beta/models/{odd}");
            assert!(
                matches!(
                    operation("POST", &target),
                    Operation::Unknown | Operation::WrongMethod(_)
                ),
                "{odd}"
            );
        }
    }
}
