//! Each program reaches the permitted name, and only that, whether or not it is told of the proxy.

use crate::lab::Lab;
use crate::site::{AGENT, PERMITTED, REFUSED, Site};
use crate::tools;

both!(
    the_refused_name_would_answer,
    curl_reaches,
    git_reaches,
    pip_reaches,
    npm_reaches,
    cargo_reaches,
    node_reaches,
    requests_reaches,
    httpx_reaches,
    aiohttp_reaches,
    a_static_go_client_reaches,
);

/// What stands on everything that the site serves.
const HELLO: &str = "hello from the server";

/// Takes every word about a proxy away.
const WITHOUT: &str =
    "unset HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy NO_PROXY no_proxy";

/// Whether a program heeds the variables.
#[derive(Clone, Copy, PartialEq)]
enum Proxy {
    Heeded,
    Ignored,
}

/// Runs `program`, a script that fetches from `$ORIGIN` and prints what it got, both ways, at both
/// names.
fn reaches(lab: &Lab, proxy: Proxy, mounts: Option<Vec<String>>, program: &str) {
    let Some(mounts) = mounts else { return };
    let Some(site) = Site::open(lab) else { return };
    site.permit(lab, "");
    let (good, bad) = (site.origin(PERMITTED), site.origin(REFUSED));
    for before in ["true", WITHOUT] {
        let story = lab.story();
        let refused = |story: &str| refusals(story).len();
        let (asked, known) = (site.asked().len(), refused(&story));
        let script = format!(
            "{before}\nexport ORIGIN={good}\n({program}\n)\necho \"permitted $?\"\n\
             export ORIGIN={bad}\n({program}\n)\necho \"refused $?\"\n"
        );
        let ran = site.sh(lab, &mounts, &script);
        let said = ran.ok();
        assert!(said.contains(HELLO) && said.contains("permitted 0"), "{before}: {ran}");
        assert!(said.contains("refused ") && !said.contains("refused 0"), "{before}: {ran}");
        assert_eq!(said.matches(HELLO).count(), 1, "{before}: {ran}");
        let asked = site.asked().split_off(asked);
        assert!(!asked.is_empty(), "{before}: nobody asked the server");
        let host = format!("{PERMITTED}:{}", site.port());
        assert!(asked.iter().all(|a| a.host == host), "{before}: {asked:?}");
        // Everything that the server saw is on record, and every refusal, with the door's side
        // that refused it.
        let after = lab.story();
        let through = format!("let through to {host}");
        let through = |story: &str| story.matches(&through).count();
        assert_eq!(through(&after) - through(&story), asked.len(), "{before}: {after}");
        let new = refusals(&after).split_off(known);
        assert!(!new.is_empty(), "{before}: no refusal in {after}");
        let by_name = before == WITHOUT || proxy == Proxy::Ignored;
        assert_eq!(new.iter().all(|r| r.contains("(rule dns)")), by_name, "{before}: {new:?}");
    }
}

/// What the log says was refused at the name that is not permitted.
fn refusals(story: &str) -> Vec<String> {
    let lines = story.lines().filter(|l| l.contains("REFUSED") && l.contains(REFUSED));
    lines.map(str::to_owned).collect()
}

/// The open reference: a rule is all that is missing.
fn the_refused_name_would_answer(lab: &Lab) {
    if testkit::need("curl").is_none() {
        return;
    }
    let Some(site) = Site::open(lab) else { return };
    site.permit(lab, &site.rule(REFUSED));
    for before in ["true", WITHOUT] {
        let script = format!("{before}; curl -sS {}/hello", site.origin(REFUSED));
        assert_eq!(site.sh(lab, &[], &script).ok(), format!("{HELLO}\n"), "{AGENT}, {before}");
    }
}

fn usr(tool: &str) -> Option<Vec<String>> {
    testkit::need(tool).map(|_| Vec::new())
}

fn curl_reaches(lab: &Lab) {
    reaches(lab, Proxy::Heeded, usr("curl"), "curl -sS \"$ORIGIN/hello\"");
}

fn git_reaches(lab: &Lab) {
    let program = "rm -rf got && git clone -q \"$ORIGIN/git/repo.git\" got && cat got/hello";
    reaches(lab, Proxy::Heeded, usr("git"), program);
}

fn pip_reaches(lab: &Lab) {
    let program = "rm -rf got && /mnt/venv/bin/python -m pip install -q --no-cache-dir --no-deps \
                   --disable-pip-version-check --retries 0 --index-url \"$ORIGIN/simple\" \
                   --target got tinypkg && \
                   PYTHONPATH=got python3 -c 'import tinypkg; print(tinypkg.HELLO)'";
    reaches(lab, Proxy::Heeded, tools::venv(lab), program);
}

fn npm_reaches(lab: &Lab) {
    let program = "rm -rf got && mkdir got && cd got && echo '{}' >package.json && \
                   npm install --silent --no-audit --no-fund --no-update-notifier \
                   --fetch-retries=0 --registry \"$ORIGIN/npm/\" tinypkg && \
                   node -p 'require(\"tinypkg\")'";
    reaches(lab, Proxy::Heeded, usr("npm"), program);
}

fn cargo_reaches(lab: &Lab) {
    let program = "rm -rf got && mkdir -p got/src && cd got && echo >src/lib.rs && \
                   printf '[package]\\nname = \"x\"\\nversion = \"0.1.0\"\\n[dependencies]\\n\
                   tinypkg = { version = \"1\", registry = \"site\" }\\n' >Cargo.toml && \
                   export CARGO_HOME=$PWD/cargo RUSTC=/mnt/rust/bin/rustc && \
                   export CARGO_REGISTRIES_SITE_INDEX=\"sparse+$ORIGIN/cargo/\" && \
                   export CARGO_NET_RETRY=0 && /mnt/rust/bin/cargo -q fetch && \
                   cat cargo/registry/src/*/tinypkg-1.0.0/src/lib.rs";
    reaches(lab, Proxy::Heeded, tools::cargo(lab), program);
}

fn node_reaches(lab: &Lab) {
    let program = "node -e 'fetch(process.env.ORIGIN + \"/hello\").then(a => a.text())\
                   .then(t => process.stdout.write(t))\
                   .catch(e => { console.error(e.cause); process.exit(1) })'";
    reaches(lab, Proxy::Ignored, usr("node"), program);
}

fn python(lab: &Lab, lines: &str) {
    let program = format!("/mnt/venv/bin/python - <<'PYTHON'\nimport os\n{lines}\nPYTHON");
    reaches(lab, Proxy::Heeded, tools::venv(lab), &program);
}

fn requests_reaches(lab: &Lab) {
    let lines = "import requests\nanswer = requests.get(os.environ['ORIGIN'] + '/hello')\n\
                 answer.raise_for_status()\nprint(answer.text)";
    python(lab, lines);
}

fn httpx_reaches(lab: &Lab) {
    let lines = "import httpx\nanswer = httpx.get(os.environ['ORIGIN'] + '/hello')\n\
                 answer.raise_for_status()\nprint(answer.text)";
    python(lab, lines);
}

fn aiohttp_reaches(lab: &Lab) {
    let lines = "import aiohttp, asyncio\nasync def main():\n    \
                 async with aiohttp.ClientSession(trust_env=True) as session:\n        \
                 async with session.get(os.environ['ORIGIN'] + '/hello') as answer:\n            \
                 answer.raise_for_status()\n            print(await answer.text())\n\
                 asyncio.run(main())";
    python(lab, lines);
}

fn a_static_go_client_reaches(lab: &Lab) {
    let program = "/mnt/go/client \"$ORIGIN/hello\"";
    reaches(lab, Proxy::Heeded, tools::go_client(lab), program);
}
