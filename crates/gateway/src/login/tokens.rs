//! What a login consists of, and its form at rest. Pure.

use crate::vault::{SecretBytes, VaultError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

/// Longest token accepted: two fit into one sealed file, and those of today have at most 3 KiB.
const TOKEN_BYTES_MAX: usize = 7 * 1024;
/// Renewed so long before the end, for clocks differ and answers of models take their time.
const MARGIN_MS: u64 = 5 * 60 * 1000;
/// But of short lives at most this part.
const MARGIN_PART: u64 = 5;
/// Longest life believed: ten years.
const LIFE_S_MAX: u64 = 10 * 366 * 86_400;

/// The tokens of a login. Cannot be printed; wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: Option<String>,
    /// The client that the provider issued for it, where it does.
    pub(crate) client: Option<String>,
    pub(crate) obtained_ms: u64,
    pub(crate) expires_ms: Option<u64>,
    /// Why the provider gives no more tokens for it.
    pub(crate) ended: Option<String>,
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.access.zeroize();
        self.refresh.zeroize();
    }
}

/// What a token endpoint answers (RFC 6749 §5.1), as far as it is used.
#[derive(Deserialize)]
struct Answer {
    access_token: String,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.access_token.zeroize();
        self.refresh_token.zeroize();
    }
}

/// Tokens become header fields: visible ASCII only.
fn fits(token: &str) -> bool {
    !token.is_empty()
        && token.len() <= TOKEN_BYTES_MAX
        && token.bytes().all(|b| b.is_ascii_graphic())
}

impl Tokens {
    /// Of an answer with status 200; `before` are those it was asked with. An answer without a
    /// refresh token leaves the old one in use (RFC 6749 §6). `None` when it is no such answer.
    pub(crate) fn of_answer(
        body: &[u8],
        before: Option<&Self>,
        client: Option<&str>,
        now_ms: u64,
    ) -> Option<Self> {
        let mut answer: Answer = serde_json::from_slice(body).ok()?;
        let given = [Some(&answer.access_token), answer.refresh_token.as_ref()];
        if given.into_iter().flatten().any(|token| !fits(token)) {
            return None;
        }
        let life = answer.expires_in.filter(|s| *s <= LIFE_S_MAX);
        Some(Self {
            access: std::mem::take(&mut answer.access_token),
            refresh: answer.refresh_token.take().or_else(|| before.and_then(|b| b.refresh.clone())),
            client: client.map(str::to_owned),
            obtained_ms: now_ms,
            expires_ms: life.map(|s| now_ms + s * 1000),
            ended: None,
        })
    }

    /// Of one that a person pasted: used as it is until it is refused.
    pub(crate) fn pasted(token: &SecretBytes, now_ms: u64) -> Result<Self, VaultError> {
        let text = std::str::from_utf8(token.expose()).ok().filter(|text| fits(text));
        let Some(text) = text else {
            let why = "it is not one line of visible ASCII characters, at most 7 KiB";
            return Err(VaultError::Refused { what: "the token", why });
        };
        Ok(Self {
            access: text.to_owned(),
            refresh: None,
            client: None,
            obtained_ms: now_ms,
            expires_ms: None,
            ended: None,
        })
    }

    /// What is left of a login that has ended: the reason.
    pub(crate) fn ended(why: &str, client: Option<String>, now_ms: u64) -> Self {
        Self {
            access: String::new(),
            refresh: None,
            client,
            obtained_ms: now_ms,
            expires_ms: None,
            ended: Some(why.to_owned()),
        }
    }

    /// As it was sealed.
    pub(crate) fn opened(bytes: &SecretBytes) -> Option<Self> {
        serde_json::from_slice(bytes.expose()).ok()
    }

    /// As it is sealed.
    pub(crate) fn sealed_form(&self) -> Result<SecretBytes, VaultError> {
        // Full capacity at once: growing would leave copies behind in freed memory.
        let mut json = Vec::with_capacity(4 * TOKEN_BYTES_MAX);
        let failed = |_| VaultError::Crypto { doing: "writing the login" };
        serde_json::to_writer(&mut json, self).map_err(failed)?;
        SecretBytes::new(json).checked()
    }

    /// Whether it is time for another one.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|end| {
            let margin = (end.saturating_sub(self.obtained_ms) / MARGIN_PART).min(MARGIN_MS);
            now_ms >= end.saturating_sub(margin)
        })
    }

    /// Whether it has run out.
    pub(crate) fn is_over(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|end| now_ms >= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(json: &str, before: Option<&Tokens>) -> Option<Tokens> {
        Tokens::of_answer(json.as_bytes(), before, None, 1_000)
    }

    #[test]
    fn an_answer_becomes_tokens_or_nothing() {
        let first = answer(
            r#"{"access_token":"a-1","refresh_token":"r-1","expires_in":100,"token_type":"x"}"#,
            None,
        )
        .expect("tokens");
        assert_eq!((first.expires_ms, first.refresh.as_deref()), (Some(101_000), Some("r-1")));
        let second = answer(r#"{"access_token":"a-2"}"#, Some(&first)).expect("tokens");
        assert_eq!((second.refresh.as_deref(), second.expires_ms), (Some("r-1"), None));
        for bad in [
            "",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":"a\r\nx-evil: 1"}"#,
            r#"{"access_token":"a","refresh_token":"é"}"#,
            r#"{"access_token":7}"#,
        ] {
            assert!(answer(bad, None).is_none(), "{bad}");
        }
        let long = format!("{{\"access_token\":\"{}\"}}", "a".repeat(TOKEN_BYTES_MAX + 1));
        assert!(answer(&long, None).is_none());
        let endless = answer(r#"{"access_token":"a","expires_in":18446744073709551615}"#, None);
        assert_eq!(endless.expect("tokens").expires_ms, None);
    }

    #[test]
    fn renewal_is_due_before_the_end_and_later_for_short_lives() {
        let with = |life_s: u64| {
            answer(&format!("{{\"access_token\":\"a\",\"expires_in\":{life_s}}}"), None)
                .expect("tokens")
        };
        let hour = with(3_600);
        assert!(!hour.is_due(1_000 + 3_299_000) && hour.is_due(1_000 + 3_300_000));
        let short = with(10);
        assert!(!short.is_due(8_000) && short.is_due(9_000) && !short.is_over(10_999));
        assert!(short.is_over(11_000));
    }

    #[test]
    fn the_form_at_rest_is_read_back() {
        let json = r#"{"access_token":"a-1","refresh_token":"r-1","expires_in":100}"#;
        let tokens = answer(json, None).expect("tokens");
        let back = Tokens::opened(&tokens.sealed_form().expect("written")).expect("read");
        assert_eq!((back.access.as_str(), back.refresh.as_deref()), ("a-1", Some("r-1")));
        assert!(Tokens::opened(&SecretBytes::new(b"{}".to_vec())).is_none());
    }
}
