//! A provider of subscriptions for tests: OAuth 2.0 with PKCE at `/oauth/token`, refresh tokens
//! that rotate and are good once, and models that open to the newest access token alone.

use super::http::{Answer, Request};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The path of the token endpoint.
const TOKEN_PATH: &str = "/oauth/token";
/// The client that is issued to one that begins with [`DYNAMIC`].
const ISSUED: &str = "issued-not-real";
/// With this, programs nobody has registered begin.
const DYNAMIC: &str = "dynamic_agent_client";

/// How the provider behaves from now on.
#[derive(Debug, Clone)]
pub struct LoginPlan {
    /// Seconds that an access token lives, as it says.
    pub lifetime: u64,
    /// Answers of the token endpoint fail with this status, so often.
    pub fail: Option<(u16, usize)>,
    /// Wait before the token endpoint answers; the token has rotated by then.
    pub delay: Duration,
    /// Whether a refresh gives a new refresh token.
    pub rotate: bool,
}

impl Default for LoginPlan {
    fn default() -> Self {
        Self { lifetime: 3_600, fail: None, delay: Duration::ZERO, rotate: true }
    }
}

#[derive(Debug, Default)]
struct State {
    plan: LoginPlan,
    salt: String,
    count: usize,
    client: String,
    access: Option<String>,
    refresh: Option<String>,
    /// Code, challenge and redirect address of who has agreed.
    agreed: Option<(String, String, String)>,
    issued: Vec<String>,
    grants: Vec<String>,
    ended: bool,
}

/// The provider; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct FakeLogin(Arc<Mutex<State>>);

impl FakeLogin {
    /// One whose tokens have `salt` in them.
    #[must_use]
    pub fn new(salt: &str) -> Self {
        let login = Self::default();
        login.lock().salt = salt.to_owned();
        login
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how it behaves.
    pub fn plan(&self, change: impl FnOnce(&mut LoginPlan)) {
        change(&mut self.lock().plan);
    }

    /// Agrees at an authorization address as a person would; the address the browser is sent to,
    /// or what is missing.
    ///
    /// # Errors
    /// When the address has not what a provider wants.
    pub fn agree(&self, url: &str) -> Result<String, String> {
        let query = url.split_once('?').ok_or("no query")?.1;
        let pairs = pairs(query);
        let get = |name: &str| pairs.get(name).cloned().ok_or(format!("no {name}"));
        if get("response_type")? != "code" || get("code_challenge_method")? != "S256" {
            return Err("not a code with S256".into());
        }
        let (state, redirect) = (get("state")?, get("redirect_uri")?);
        let client = get("client_id")?;
        if state.len() < 32 || !["nanoclaw-test", DYNAMIC, ISSUED].contains(&client.as_str()) {
            return Err("a short state, or another client".into());
        }
        let mut inner = self.lock();
        inner.client = client;
        let mut issued = String::new();
        if inner.client == DYNAMIC {
            let host = get("ext_agent_host_id")?;
            if get("agent_name_hint")? != "NanoClaw" || !host.starts_with("urn:uuid:") {
                return Err("an agent without a name or a host".into());
            }
            get("resource")?;
            inner.client = ISSUED.to_owned();
            issued = format!("&client_id={ISSUED}");
        }
        inner.count += 1;
        let code = format!("code-not-real-{}", inner.count);
        inner.agreed = Some((code.clone(), get("code_challenge")?, redirect.clone()));
        Ok(format!("{redirect}?code={code}&state={state}{issued}"))
    }

    /// Every token ever given out.
    #[must_use]
    pub fn issued(&self) -> Vec<String> {
        self.lock().issued.clone()
    }

    /// What was asked of the token endpoint, in order: grant types and how it ended.
    #[must_use]
    pub fn grants(&self) -> Vec<String> {
        self.lock().grants.clone()
    }

    /// The access token is good no more, though it has not run out.
    pub fn spoil(&self) {
        self.lock().access = None;
    }

    /// The whole login is good no more.
    pub fn revoke(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        inner.access = None;
    }

    /// The answer, where it is for this module to give.
    pub(super) fn answer(&self, request: &Request) -> Option<Answer> {
        let path = request.path.split('?').next().unwrap_or("");
        if path == TOKEN_PATH {
            let (answer, delay) = self.token(request);
            std::thread::sleep(delay);
            return Some(answer);
        }
        let bearer = request.headers.iter().find(|(name, _)| name == "authorization");
        let bearer = bearer.and_then(|(_, value)| value.strip_prefix("Bearer "));
        if bearer.is_none() || bearer != self.lock().access.as_deref() {
            let text = format!("the token {} is not good", bearer.unwrap_or("none"));
            let error = json!({ "type": "authentication_error", "message": text });
            return Some(Answer::json(401, json!({ "type": "error", "error": error }).to_string()));
        }
        (path == "/v1/responses").then(|| {
            let part = json!({ "type": "output_text", "text": "MOCK_TEXT[subscribed]" });
            let output = json!({ "type": "message", "role": "assistant", "content": [part] });
            let body = json!({ "object": "response", "status": "completed", "output": [output],
                "usage": { "input_tokens": 3, "output_tokens": 2 } });
            Answer::json(200, body.to_string())
        })
    }

    fn token(&self, request: &Request) -> (Answer, Duration) {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let asked: BTreeMap<String, String> =
            serde_json::from_str(&body).unwrap_or_else(|_| pairs(&body));
        let get = |name: &str| asked.get(name).cloned().unwrap_or_default();
        let mut inner = self.lock();
        let (kind, delay) = (get("grant_type"), inner.plan.delay);
        if let Some((status, left)) = inner.plan.fail {
            inner.plan.fail = Some((status, left - 1)).filter(|(_, left)| *left > 0);
            inner.grants.push(format!("{kind} {status}"));
            // As if it had echoed what it was sent.
            let said = json!({ "error": "server_error", "error_description": body });
            return (Answer::json(status, said.to_string()), delay);
        }
        let good = !inner.ended
            && get("client_id") == inner.client
            && match kind.as_str() {
                "refresh_token" => Some(get("refresh_token")) == inner.refresh,
                "authorization_code" => {
                    let verifier = digest(&SHA256, get("code_verifier").as_bytes());
                    let challenge = URL_SAFE_NO_PAD.encode(verifier);
                    inner.agreed.take() == Some((get("code"), challenge, get("redirect_uri")))
                }
                _ => false,
            };
        if !good {
            // A refresh token that comes twice was stolen: nothing is good any more.
            inner.ended |= kind == "refresh_token";
            inner.grants.push(format!("{kind} refused"));
            let said = json!({ "error": "invalid_grant", "error_description": body });
            return (Answer::json(400, said.to_string()), delay);
        }
        inner.grants.push(format!("{kind} granted"));
        inner.count += 1;
        let access = format!("access-not-real-{}-{}", inner.count, inner.salt);
        let mut said = json!({ "access_token": access, "token_type": "Bearer",
            "expires_in": inner.plan.lifetime });
        inner.issued.push(access.clone());
        inner.access = Some(access);
        if inner.plan.rotate || inner.refresh.is_none() {
            let refresh = format!("refresh-not-real-{}-{}", inner.count, inner.salt);
            said["refresh_token"] = Value::from(refresh.clone());
            inner.issued.push(refresh.clone());
            inner.refresh = Some(refresh);
        }
        (Answer::json(200, said.to_string()), delay)
    }
}

/// `a=b&c=d`, percent-decoded.
fn pairs(text: &str) -> BTreeMap<String, String> {
    let decoded = |text: &str| {
        let mut out = Vec::new();
        let mut bytes = text.bytes();
        while let Some(b) = bytes.next() {
            let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16)).unwrap_or(0);
            match b {
                b'%' => out.push(u8::try_from(digit() * 16 + digit()).unwrap_or(0)),
                _ => out.push(b),
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), decoded(value))).collect()
}
