//! The way of a person's agreement: an address to open, and what comes back from it. Pure but for
//! randomness. OAuth 2.0 with PKCE (RFC 7636, S256) and a state (RFC 6749 §10.12).

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::{AgentName, LoginConfig, LoginProvider};
use zeroize::Zeroizing;

/// Bytes of the verifier and of the state (RFC 7636 §4.1 wants 32).
const RANDOM_BYTES: usize = 32;
/// What a `ChatGPT` plan is to be used for.
const OPENAI_RESOURCE: &str = "https://api.openai.com/v1";
/// Longest text taken for an answer.
const PASTED_BYTES_MAX: usize = 8 * 1024;

/// A login that a person is agreeing to. The verifier stays here, so the code alone opens nothing.
pub(crate) struct Begun {
    pub(crate) config: LoginConfig,
    pub(crate) client_id: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) agents: Vec<AgentName>,
    pub(crate) verifier: Zeroizing<String>,
    pub(crate) state: String,
}

fn random() -> Result<Zeroizing<String>, &'static str> {
    let mut bytes = Zeroizing::new([0_u8; RANDOM_BYTES]);
    aws_lc_rs::rand::fill(&mut bytes[..]).map_err(|_| "the system gives no random bytes")?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(&bytes[..])))
}

/// Begins; also the address to open.
pub(crate) fn begin(
    config: LoginConfig,
    client_id: String,
    installation: &str,
    (hosts, agents): (Vec<String>, Vec<AgentName>),
) -> Result<(Begun, String), &'static str> {
    let (verifier, state, nonce) = (random()?, random()?.to_string(), random()?);
    let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
    let mut pairs = vec![
        ("response_type", "code"),
        ("client_id", client_id.as_str()),
        ("redirect_uri", config.redirect_url.as_str()),
        ("scope", config.scope.as_str()),
        ("code_challenge", challenge.as_str()),
        ("code_challenge_method", "S256"),
        ("state", state.as_str()),
    ];
    match config.provider {
        // Its page then shows the code, to be pasted.
        LoginProvider::Claude => pairs.push(("code", "true")),
        LoginProvider::ChatGpt => pairs.extend([
            ("resource", OPENAI_RESOURCE),
            ("agent_name_hint", "NanoClaw"),
            ("ext_agent_host_id", installation),
            ("nonce", nonce.as_str()),
        ]),
    }
    let url = format!("{}?{}", config.authorize_url, form(&pairs).as_str());
    Ok((Begun { config, client_id, hosts, agents, verifier, state }, url))
}

/// `application/x-www-form-urlencoded`.
pub(crate) fn form(pairs: &[(&str, &str)]) -> Zeroizing<String> {
    let bytes: usize = pairs.iter().map(|(k, v)| 3 * (k.len() + v.len()) + 2).sum();
    let mut out = Zeroizing::new(String::with_capacity(bytes));
    for (i, (key, value)) in pairs.iter().enumerate() {
        if i > 0 {
            out.push('&');
        }
        escape(&mut out, key);
        out.push('=');
        escape(&mut out, value);
    }
    out
}

fn escape(out: &mut String, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(b >> 4)]));
            out.push(char::from(DIGITS[usize::from(b & 15)]));
        }
    }
}

fn unescape(text: &str) -> Option<String> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        match b {
            b'%' => {
                let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                if !digits.bytes().all(|d| d.is_ascii_hexdigit()) {
                    return None;
                }
                out.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &rest[2..];
            }
            b'+' => out.push(b' '),
            _ => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

/// What came back from a person's agreement.
pub(crate) struct Came {
    pub(crate) code: Zeroizing<String>,
    /// The client that was issued, if one was.
    pub(crate) client: Option<String>,
}

/// The code in what the browser was sent to, or in what a person copied from it: an address, its
/// query, or `CODE#STATE`. The state must be ours. A provider that issues clients says in the
/// same place which one.
pub(crate) fn code_in(pasted: &str, state: &str) -> Result<Came, String> {
    let pasted = pasted.trim();
    if pasted.len() > PASTED_BYTES_MAX {
        return Err("what was pasted is too long for a code".into());
    }
    let query = match pasted.split_once('?') {
        Some((_, query)) => Some(query.split('#').next().unwrap_or(query)),
        None if pasted.contains("code=") || pasted.contains("error=") => Some(pasted),
        None => None,
    };
    let (code, its_state, client) = match query {
        Some(query) => {
            let value = |name: &str| {
                let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| unescape(value))
            };
            if value("error").is_some() {
                return Err("the provider says that access was not granted; try again".into());
            }
            (value("code"), value("state"), value("client_id"))
        }
        None => match pasted.split_once('#') {
            Some((code, state)) => (Some(code.to_owned()), Some(state.to_owned()), None),
            None => (Some(pasted.to_owned()), None, None),
        },
    };
    let code = code.filter(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_graphic()));
    let code = Zeroizing::new(code.ok_or("there is no code in what was pasted")?);
    match its_state {
        Some(its) if its == state => {
            let fits = |c: &String| {
                (1..=128).contains(&c.len())
                    && c.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            };
            Ok(Came { code, client: client.filter(fits) })
        }
        Some(_) => {
            Err("the code belongs to another login (its state is not the one that was sent); \
                        open the newest address"
                .into())
        }
        None => Err("only half of the code was pasted; paste the whole address that the browser \
                     was sent to, or the whole code with what follows its '#'"
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_has_challenge_and_state_and_no_verifier() {
        let config = LoginConfig::built_in("chatgpt", LoginProvider::ChatGpt);
        let begin = || {
            let nobody = (Vec::new(), Vec::new());
            begin(config.clone(), "client 1".into(), "urn:uuid:1", nobody).expect("begun")
        };
        let (begun, url) = begin();
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, begun.verifier.as_bytes()));
        for part in [
            "https://auth.openai.com/api/accounts/authorize?response_type=code&client_id=client%201&",
            "redirect_uri=http%3A%2F%2F127.0.0.1%3A1455%2Fauth%2Fcallback&",
            "&agent_name_hint=NanoClaw&ext_agent_host_id=urn%3Auuid%3A1&",
            &format!("code_challenge={challenge}&code_challenge_method=S256&"),
            &format!("state={}", begun.state),
        ] {
            assert!(url.contains(part), "{url} has no {part}");
        }
        assert!(!url.contains(begun.verifier.as_str()));
        let (other, _) = begin();
        assert!(other.state != begun.state && *other.verifier != *begun.verifier);
    }

    #[test]
    fn a_code_is_found_where_it_stands_and_only_with_our_state() {
        for good in [
            "http://localhost:1455/auth/callback?code=a%2Fb&state=ours",
            " http://localhost:1455/auth/callback?state=ours&code=a/b#_ \n",
            "code=a%2fb&state=ours",
            "a/b#ours",
        ] {
            let code = code_in(good, "ours").map(|came| came.code.to_string());
            assert_eq!(code, Ok("a/b".into()), "{good}");
        }
        let client = |query: &str| code_in(query, "ours").expect("a code").client;
        let issued = client("?code=a&state=ours&client_id=oaiapp_1");
        assert_eq!(issued.as_deref(), Some("oaiapp_1"));
        assert_eq!(client("?code=a&state=ours&client_id=a%26b"), None);
        for bad in [
            "",
            "a/b",
            "a/b#theirs",
            "#ours",
            "code=a",
            "code=a&state=",
            "code=&state=ours",
            "code=%zz&state=ours",
            "code=a%0d%0ab&state=ours",
            "https://x/?error=access_denied&state=ours",
            "é#ours",
        ] {
            assert!(code_in(bad, "ours").is_err(), "{bad}");
        }
        assert!(code_in(&"a".repeat(PASTED_BYTES_MAX + 1), "ours").is_err());
    }
}
