//! Logins, from a person's agreement to a login that is over, at a provider on a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::*;
use model::{Body, Durability, LoginConfig, LoginProvider, ModelApi};
use nanoclaw_gateway::{
    Door, Gateway, GatewayConfig, RetryPolicy, Roots, Sealer, SecretBytes, Vault, bind_door,
};
use rustls::pki_types::CertificateDer;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use testkit::{FakeLogin, FakeModel, Options, Seen};
use tokio::net::{TcpListener, TcpStream};

const ASK: &str =
    r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"NOTOOL hello"}]}"#;
/// Where the clock of these tests begins, and what an access token lives by default.
const BEGIN_MS: u64 = 1_000_000;
const HOUR_MS: u64 = 3_600_000;

/// A gateway, its door, and a provider.
struct World {
    dir: TempDir,
    sink: Arc<MemorySink>,
    gateway: Gateway,
    door: Door,
    clock: Arc<AtomicU64>,
    provider: FakeLogin,
    server: FakeModel,
    login: LoginConfig,
}

fn provider() -> (FakeLogin, FakeModel) {
    let provider = FakeLogin::new("salt");
    let options = Options { login: Some(provider.clone()), ..Options::default() };
    let server = FakeModel::start(options).unwrap();
    (provider, server)
}

fn login_at(provider: LoginProvider, token_url: String) -> LoginConfig {
    let built_in = LoginConfig::built_in("sub", provider);
    let client_id = built_in.client_id.clone().or(Some("nanoclaw-test".into()));
    LoginConfig { client_id, token_url, ..built_in }
}

impl World {
    fn new(kind: LoginProvider) -> Self {
        let (provider, server) = provider();
        let login = login_at(kind, format!("{}/oauth/token", server.base_url()));
        Self::with(provider, server, login, Roots::Only(vec![]))
    }

    fn with(provider: FakeLogin, server: FakeModel, login: LoginConfig, roots: Roots) -> Self {
        let dir = TempDir::new();
        Sealer::open_or_create(&dir.0).unwrap();
        let sink = Arc::new(MemorySink::default());
        let clock = Arc::new(AtomicU64::new(BEGIN_MS));
        let mut config = GatewayConfig::new(sink.clone(), Vault::open(&dir.0).unwrap());
        config.resolver = Arc::new(FixedResolver(vec!["127.0.0.1".parse().unwrap()]));
        config.roots = roots;
        config.retry = RetryPolicy { attempts_max: 1, ..RetryPolicy::default() };
        let time = clock.clone();
        config.clock = Arc::new(move || time.load(Ordering::SeqCst));
        let gateway = Gateway::new(config);
        let door = open(&gateway, &dir, &login, &server);
        Self { dir, sink, gateway, door, clock, provider, server, login }
    }

    async fn log_in(&self) {
        let hosts = ["127.0.0.1".to_owned()];
        let (begun, url) = self.gateway.begin_login(self.login.clone(), &hosts, vec![]).unwrap();
        let back = self.provider.agree(&url).unwrap();
        let (expires, renewable) = self.gateway.finish_login(&begun, &back).await.unwrap();
        assert!(expires.is_some() && renewable);
    }

    async fn ask(&self) -> (u16, String) {
        let path = match self.login.provider {
            LoginProvider::Claude => "/v1/messages",
            LoginProvider::ChatGpt => "/v1/responses",
        };
        let fields = format!("authorization: Bearer {PLACEHOLDER}\r\nanthropic-beta: b1\r\n");
        parts(&post(&self.door, path, &fields, ASK).await)
    }

    fn later(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::SeqCst);
    }

    fn sealed(&self) -> PathBuf {
        self.dir.0.join("vault/sub.login")
    }

    /// What the model was asked, without the token endpoint.
    fn asked(&self) -> Vec<Seen> {
        self.server.requests().into_iter().filter(|s| !s.path.starts_with("/oauth")).collect()
    }

    /// Renewals that were granted or refused, as the provider saw them.
    fn renewals(&self) -> Vec<String> {
        let grants = self.provider.grants();
        grants.into_iter().filter(|g| g.starts_with("refresh_token")).collect()
    }

    /// No token ever issued is in a record, an answer or a file.
    fn nothing_leaked(&self, said: &str) {
        let mut all = self.sink.as_json() + said;
        for entry in std::fs::read_dir(self.dir.0.join("vault")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                all.push_str(&String::from_utf8_lossy(&std::fs::read(path).unwrap()));
            }
        }
        let issued = self.provider.issued();
        assert!(!issued.is_empty());
        for token in issued {
            assert!(!all.contains(&token), "{token} in {all}");
        }
        assert!(!all.contains("code-not-real"), "{all}");
    }
}

fn open(gateway: &Gateway, dir: &TempDir, login: &LoginConfig, server: &FakeModel) -> Door {
    let api = match login.provider {
        LoginProvider::Claude => ModelApi::Anthropic,
        LoginProvider::ChatGpt => ModelApi::Responses,
    };
    let mut model = http_model("m", api, server.address().port(), None);
    model.login = Some(login.clone());
    let grant = serde_json::json!({
        "session": "s1", "agent": "tester", "egress": [], "models": [model],
        "default_model": "m", "placeholder": PLACEHOLDER,
    });
    let path = dir.0.join(format!("door-{}.sock", login.token_url.len()));
    let listener = bind_door(&path).unwrap();
    gateway.open_door(serde_json::from_value(grant).unwrap(), listener).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_opens_the_model_and_its_tokens_are_nowhere_else() {
    let w = World::new(LoginProvider::Claude);
    let (status, said) = w.ask().await;
    assert_eq!(status, 401);
    assert!(said.contains("`nanoclaw login sub`"), "{said}");
    assert_eq!(w.asked().len(), 0, "nothing is asked without a login");
    w.log_in().await;
    let (status, more) = w.ask().await;
    assert_eq!(status, 200, "{more}");
    assert!(more.contains("MOCK_TEXT"), "{more}");
    let seen = &w.asked()[0];
    let token = &w.provider.issued()[0];
    assert_eq!(seen.header("authorization"), Some(format!("Bearer {token}").as_str()));
    assert_eq!(seen.header("anthropic-beta"), Some("b1,oauth-2025-04-20"));
    assert!(!format!("{seen:?}").contains(PLACEHOLDER));
    let kinds = w.sink.kinds();
    let wanted =
        ["login_request", "login_response", "secret_used", "model_request", "model_response"];
    assert_eq!(kinds, wanted);
    let records = w.sink.records.lock().unwrap().clone();
    assert_eq!(records[0].1, Durability::Durable);
    assert!(matches!(&records[0].0.body,
        Body::LoginRequest { login, host, purpose }
            if (login.as_str(), host.as_str(), purpose.as_str()) == ("sub", "127.0.0.1", "login")));
    assert!(matches!(&records[1].0.body,
        Body::LoginResponse { rotated: true, error: None, status: 200,
            expires_ms: Some(end), .. } if *end == BEGIN_MS + HOUR_MS));
    assert!(matches!(&records[2].0.body, Body::SecretUsed { secret, .. } if secret == "login:sub"));
    w.nothing_leaked(&(said + &more));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_of_chatgpt_is_asked_in_its_own_way() {
    let w = World::new(LoginProvider::ChatGpt);
    w.log_in().await;
    let (status, said) = w.ask().await;
    assert_eq!(status, 200, "{said}");
    let seen = &w.asked()[0];
    assert_eq!(seen.path, "/v1/responses");
    let token = &w.provider.issued()[0];
    assert_eq!(seen.header("authorization"), Some(format!("Bearer {token}").as_str()));
    assert_eq!(seen.header("anthropic-beta"), Some("b1"));
    // It is renewed as the client that was issued, and the next login begins as that one.
    w.later(HOUR_MS);
    assert_eq!(w.ask().await.0, 200);
    assert_eq!(w.renewals(), ["refresh_token granted"]);
    let (_, url) = w.gateway.begin_login(w.login.clone(), &[], vec![]).unwrap();
    assert!(url.contains("client_id=issued-not-real&"), "{url}");
    w.nothing_leaked(&said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_before_it_runs_out_and_once_for_all_who_wait() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    w.later(HOUR_MS - 301_000);
    assert_eq!(w.ask().await.0, 200);
    assert_eq!(w.renewals().len(), 0, "five minutes and a second before the end it still serves");
    w.later(1_000);
    w.provider.plan(|p| p.delay = Duration::from_millis(300));
    let all = std::iter::repeat_with(|| w.ask()).take(20);
    for (status, said) in futures(all).await {
        assert_eq!(status, 200, "{said}");
    }
    assert_eq!(w.renewals(), ["refresh_token granted"]);
    // The rotated refresh token was kept: it renews again, also for a gateway that starts anew.
    w.later(HOUR_MS);
    assert_eq!(w.ask().await.0, 200);
    assert_eq!(w.renewals(), ["refresh_token granted"; 2]);
    w.nothing_leaked("");
}

/// Runs all at once.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = all.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(move |cx| {
        waiting.retain_mut(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => {
                done.push(value);
                false
            }
            std::task::Poll::Pending => true,
        });
        match waiting.is_empty() {
            true => std::task::Poll::Ready(std::mem::take(&mut done)),
            false => std::task::Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_is_renewed_and_the_question_asked_again_once() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    w.provider.spoil();
    let (status, said) = w.ask().await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(w.renewals(), ["refresh_token granted"]);
    let statuses: Vec<u16> = w.asked().iter().map(|s| s.status).collect();
    assert_eq!(statuses, [401, 200]);
    let responses = w.sink.bodies();
    let last = responses.iter().rev().find(|b| b.kind() == "model_response").unwrap();
    assert!(matches!(last, Body::ModelResponse { status: 200, error: None, .. }), "{last:?}");
    w.nothing_leaked(&said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_over_says_so_and_leaves_the_provider_alone() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    w.provider.revoke();
    let mut all = String::new();
    for _ in 0..3 {
        let (status, said) = w.ask().await;
        assert_eq!(status, 401, "{said}");
        assert!(said.contains("the login sub is over") && said.contains("`nanoclaw login sub`"));
        all.push_str(&said);
    }
    assert_eq!(w.renewals(), ["refresh_token refused"], "asked once, not for every question");
    assert_eq!(w.asked().len(), 1);
    let bodies = w.sink.bodies();
    assert!(
        bodies.iter().any(|b| matches!(b, Body::LoginResponse { error: Some(e), status: 400, .. }
        if e.contains("invalid_grant")))
    );
    w.nothing_leaked(&all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_is_no_end_while_the_token_lasts() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    w.later(HOUR_MS - 100_000);
    w.provider.plan(|p| p.fail = Some((503, 1)));
    assert_eq!(w.ask().await.0, 200, "the old token still serves");
    assert_eq!(w.ask().await.0, 200);
    assert_eq!(w.renewals(), ["refresh_token 503"], "and the provider has its rest");
    w.later(100_000);
    let (status, said) = w.ask().await;
    assert_eq!(status, 503, "{said}");
    assert!(said.contains("cannot be renewed now"), "{said}");
    tokio::time::sleep(Duration::from_millis(5_100)).await;
    assert_eq!(w.ask().await.0, 200);
    assert_eq!(w.renewals(), ["refresh_token 503", "refresh_token granted"]);
    w.nothing_leaked(&said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_outlives_the_agent_that_asked_for_it() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    w.later(HOUR_MS);
    let before = std::fs::read(w.sealed()).unwrap();
    w.provider.plan(|p| p.delay = Duration::from_millis(600));
    // It hangs up while the provider, which has rotated the token already, has not answered.
    assert!(tokio::time::timeout(Duration::from_millis(200), w.ask()).await.is_err());
    w.sink.wait_for("login_response").await;
    for _ in 0..300 {
        if std::fs::read(w.sealed()).unwrap() != before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(w.ask().await.0, 200);
    assert_eq!(w.renewals(), ["refresh_token granted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tokens_are_used_for_nothing_before_they_are_on_disk_and_are_not_lost() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    w.later(HOUR_MS);
    // Where the vault writes before it renames.
    let blocked = w.dir.0.join(format!("vault/sub.{}.new", std::process::id()));
    std::fs::create_dir(&blocked).unwrap();
    let (status, said) = w.ask().await;
    assert_eq!(status, 503, "{said}");
    assert!(said.contains("cannot be kept"), "{said}");
    assert_eq!((w.asked().len(), w.renewals().len()), (0, 1));
    assert_eq!(w.ask().await.0, 503, "the next one tries the disk again, not the provider");
    std::fs::remove_dir(&blocked).unwrap();
    assert_eq!(w.ask().await.0, 200);
    assert_eq!(w.renewals(), ["refresh_token granted"]);
    w.later(HOUR_MS);
    assert_eq!(w.ask().await.0, 200, "the rotated refresh token was not lost");
    w.nothing_leaked(&said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_removed_during_its_renewal_does_not_come_back() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    w.later(HOUR_MS);
    w.provider.plan(|p| p.delay = Duration::from_millis(500));
    let logout = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(Sealer::open_or_create(&w.dir.0).unwrap().remove_login("sub").unwrap());
    };
    let ((status, said), ()) = tokio::join!(w.ask(), logout);
    assert_eq!(status, 401, "{said}");
    assert!(!w.sealed().exists());
    assert_eq!(w.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_does_not_go_to_the_provider() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    w.later(HOUR_MS);
    w.sink.broken.store(true, Ordering::SeqCst);
    let (status, said) = w.ask().await;
    assert_eq!(status, 503, "{said}");
    assert_eq!((w.renewals().len(), w.asked().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_go_where_they_were_sealed_for_whatever_the_configuration_says() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    w.later(HOUR_MS);
    // The same login, with the token endpoint of somebody else; and a model of somebody else.
    let (thief, other) = provider();
    let token_url = format!("http://localhost:{}/oauth/token", other.address().port());
    let stolen = LoginConfig { token_url, ..w.login.clone() };
    let door = open(&w.gateway, &w.dir, &stolen, &w.server);
    let (status, said) = parts(&post(&door, "/v1/messages", "", ASK).await);
    assert_eq!(status, 403, "{said}");
    assert!(said.contains("127.0.0.1 only, not to localhost"), "{said}");
    assert_eq!((thief.grants().len(), other.requests().len()), (0, 0));
    // An agent that the login is not for.
    let (begun, url) = w
        .gateway
        .begin_login(
            w.login.clone(),
            &["127.0.0.1".to_owned()],
            vec![model::AgentName::parse("other").unwrap()],
        )
        .unwrap();
    let back = w.provider.agree(&url).unwrap();
    w.gateway.finish_login(&begun, &back).await.unwrap();
    let (status, said) = w.ask().await;
    assert_eq!(status, 403, "{said}");
    assert!(said.contains("not for agent tester"), "{said}");
    assert_eq!(w.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_of_another_login_and_a_code_twice_are_refused() {
    let w = World::new(LoginProvider::Claude);
    let hosts = ["127.0.0.1".to_owned()];
    let begin = || w.gateway.begin_login(w.login.clone(), &hosts, vec![]).unwrap();
    let ((first, first_url), (second, second_url)) = (begin(), begin());
    let back = w.provider.agree(&first_url).unwrap();
    let error = w.gateway.finish_login(&second, &back).await.unwrap_err();
    assert!(error.contains("another login"), "{error}");
    // The right state with a code that was made for another challenge.
    let mixed = w.provider.agree(&second_url).unwrap();
    let state = back.split("state=").nth(1).unwrap();
    let mixed = mixed.split("&state=").next().unwrap().to_owned() + "&state=" + state;
    let error = w.gateway.finish_login(&first, &mixed).await.unwrap_err();
    assert!(error.contains("invalid_grant"), "{error}");
    assert!(!w.sealed().exists());
    let back = w.provider.agree(&first_url).unwrap();
    w.gateway.finish_login(&first, &back).await.unwrap();
    assert!(w.gateway.finish_login(&first, &back).await.is_err(), "a code is good once");
    assert_eq!(w.ask().await.0, 200, "and the failure took nothing away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pasted_token_serves_until_it_is_refused() {
    let w = World::new(LoginProvider::Claude);
    w.log_in().await;
    let token = w.provider.issued()[0].clone();
    let sealer = Sealer::open_or_create(&w.dir.0).unwrap();
    let hosts = ["127.0.0.1".to_owned()];
    let value = SecretBytes::new(format!("{token}\n").into_bytes());
    sealer.set_login("sub", value, &hosts, &[], 1).unwrap();
    assert_eq!(sealer.logins().unwrap()[0].name, "sub");
    assert!(sealer.list().unwrap().is_empty(), "a login is no secret that rules could name");
    w.later(10 * HOUR_MS);
    assert_eq!(w.ask().await.0, 200);
    w.provider.spoil();
    let (status, said) = w.ask().await;
    assert_eq!(status, 401, "{said}");
    assert!(said.contains("is over") && said.contains("nanoclaw login sub"), "{said}");
    assert_eq!(w.renewals().len(), 0);
    // Another file under its name is not taken for it.
    std::fs::copy(w.sealed(), w.dir.0.join("vault/sub.sealed")).unwrap();
    assert!(Vault::open(&w.dir.0).unwrap().secret("sub").is_err());
    w.nothing_leaked(&said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_spoken_to_over_tls_and_must_be_who_it_says() {
    let (provider, server) = provider();
    let (cert, port) = tls_in_front_of(server.address().port()).await;
    let login = login_at(LoginProvider::Claude, format!("https://login.test:{port}/oauth/token"));
    let w = World::with(provider, server, login, Roots::Only(vec![cert]));
    w.log_in().await;
    assert_eq!(w.ask().await.0, 200);

    let (provider, server) = self::provider();
    let (_, port) = tls_in_front_of(server.address().port()).await;
    let (other, _) = tls_server("login.test");
    let login = login_at(LoginProvider::Claude, format!("https://login.test:{port}/oauth/token"));
    let w = World::with(provider, server, login, Roots::Only(vec![other]));
    let hosts = ["127.0.0.1".to_owned()];
    let (begun, url) = w.gateway.begin_login(w.login.clone(), &hosts, vec![]).unwrap();
    let back = w.provider.agree(&url).unwrap();
    let error = w.gateway.finish_login(&begun, &back).await.unwrap_err();
    assert!(error.contains("TLS with login.test failed"), "{error}");
    assert!(w.provider.grants().is_empty());
}

/// A TLS server on a port of its own that passes everything on.
async fn tls_in_front_of(port: u16) -> (CertificateDer<'static>, u16) {
    let (cert, acceptor) = tls_server("login.test");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(stream).await else { return };
                let mut behind = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut behind).await;
            });
        }
    });
    (cert, own)
}
