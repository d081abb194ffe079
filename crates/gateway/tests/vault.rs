//! The vault on a real disk: round trip, tampering, permissions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod place;

use model::AgentName;
use nanoclaw_gateway::vault::{KeySource, key_source};
use nanoclaw_gateway::{Sealer, SecretBytes, Vault, VaultError};
use place::TempDir;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const VALUE: &str = "test-key-not-real";
/// Thirty-two times 7, in the form of a private key's file.
const V1_IDENTITY: &str =
    "nanoclaw-vault-identity-v1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n";
/// A file of version 1, sealed to it by another implementation of the format.
const V1_SEALED: &str = concat!(
    r#"nanoclaw-sealed-v1 {"version":1,"name":"old","hosts":["a.com"],"created_ms":3}"#,
    "\n",
    "V9tLNZ8jrl4Ubk4lEgVnBHIlBjSMFQwUdT0Mkz0E1CEY",
    "tWlJ1H+YmzvvJWocxqQxsbimTLIBGZuK4ZK7tvtoMkc=\n",
);

fn hosts() -> Vec<String> {
    vec!["API.Example.com".into(), "[::1]".into(), "127.0.0.1".into()]
}

fn agent(name: &str) -> AgentName {
    AgentName::parse(name).unwrap()
}

fn value(text: &str) -> SecretBytes {
    SecretBytes::new(text.into())
}

fn sealed(home: &Path) -> Sealer {
    let sealer = Sealer::open_or_create(home).unwrap();
    sealer.set("My_key-1", SecretBytes::new(format!("{VALUE}\n").into()), &hosts(), 42).unwrap();
    sealer
}

#[test]
fn a_secret_comes_back_and_only_its_header_is_in_clear() {
    let home = TempDir::new();
    let sealer = sealed(&home.0);
    let vault = Vault::open(&home.0).unwrap();
    let secret = vault.secret("My_key-1").unwrap();
    assert_eq!(secret.bytes.expose(), VALUE.as_bytes());
    let anyone = agent("anyone");
    assert!(secret.serves("api.example.com", &anyone) && secret.serves("::1", &anyone));
    assert!(!secret.serves("example.com", &anyone));
    let listed = sealer.list().unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].created_ms), (1, "My_key-1", 42));
    for entry in fs::read_dir(home.0.join("vault")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        assert!(!fs::read_to_string(&path).unwrap().contains(VALUE));
    }
    let mode = fs::metadata(home.0.join("vault")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // A second sealer uses the same key; a new value replaces the old one at once.
    let again = Sealer::open_or_create(&home.0).unwrap();
    again.set("My_key-1", SecretBytes::new(b"another-not-real".into()), &hosts(), 43).unwrap();
    assert_eq!(vault.secret("My_key-1").unwrap().bytes.expose(), b"another-not-real");
    assert!(again.remove("My_key-1").unwrap() && !again.remove("My_key-1").unwrap());
    assert!(matches!(vault.secret("My_key-1"), Err(VaultError::NotFound { .. })));
}

#[test]
fn every_changed_byte_a_rename_and_another_key_are_noticed() {
    let home = TempDir::new();
    sealed(&home.0);
    let vault = Vault::open(&home.0).unwrap();
    let path = home.0.join("vault/My_key-1.sealed");
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert!(vault.secret("My_key-1").is_err(), "byte {at} changed and nobody noticed");
    }
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..cut]).unwrap();
        assert!(vault.secret("My_key-1").is_err());
    }
    fs::write(home.0.join("vault/other.sealed"), &good).unwrap();
    assert!(matches!(vault.secret("other"), Err(VaultError::Sealed { .. })));
    let elsewhere = TempDir::new();
    sealed(&elsewhere.0);
    fs::copy(elsewhere.0.join("vault/My_key-1.sealed"), &path).unwrap();
    assert!(matches!(vault.secret("My_key-1"), Err(VaultError::Sealed { .. })));
    fs::write(&path, &good).unwrap();
    assert!(vault.secret("My_key-1").is_ok());
}

#[test]
fn a_private_key_that_others_may_read_is_not_used() {
    let home = TempDir::new();
    sealed(&home.0);
    let identity = home.0.join("vault/identity");
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Vault::open(&home.0), Err(VaultError::Permissions { .. })));
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&identity, "nonsense").unwrap();
    assert!(matches!(Vault::open(&home.0), Err(VaultError::BadKey { .. })));
    fs::remove_file(&identity).unwrap();
    let vault = Vault::open(&home.0).unwrap();
    assert!(matches!(vault.secret("My_key-1"), Err(VaultError::NoIdentity { .. })));
    // The public key alone is enough to seal.
    let sealer = Sealer::open_or_create(&home.0).unwrap();
    sealer.set("b", SecretBytes::new(b"x-not-real".into()), &hosts(), 1).unwrap();
    assert!(!identity.exists());
}

#[test]
fn a_vault_that_does_not_exist_yet_is_empty_and_later_found() {
    let home = TempDir::new();
    let vault = Vault::open(&home.0).unwrap();
    assert!(matches!(vault.secret("My_key-1"), Err(VaultError::NotFound { .. })));
    sealed(&home.0);
    assert!(vault.secret("My_key-1").is_ok());
}

#[test]
fn bad_names_values_and_hosts_are_refused() {
    let home = TempDir::new();
    let sealer = Sealer::open_or_create(&home.0).unwrap();
    let set = |name: &str, value: &[u8], hosts: &[String]| {
        sealer.set(name, SecretBytes::new(value.into()), hosts, 1)
    };
    for name in ["", "..", "a/b", "a b", "-a", "a-", "é", "a.b", &"x".repeat(65)] {
        assert!(
            matches!(set(name, b"v-not-real", &hosts()), Err(VaultError::Refused { .. })),
            "{name}"
        );
    }
    for value in [
        &b""[..],
        b"\n",
        b"not\nreal",
        b"not-real\n\n",
        b"not\0real",
        b"not\rreal",
        b"5-not",
        b"5-not\r\n",
        &[b'x'; 16 * 1024 + 1],
    ] {
        assert!(matches!(set("a", value, &hosts()), Err(VaultError::Refused { .. })));
    }
    for host in ["", "https://a.com", "a.com:443", "a.com/x", "*.a.com"] {
        assert!(
            matches!(set("a", b"v-not-real", &[host.into()]), Err(VaultError::Refused { .. })),
            "{host}"
        );
    }
    assert!(set("a", b"v-not-real", &[]).is_err());
    assert!(set("a", &[b'x'; 16 * 1024], &hosts()).is_ok());
    assert_eq!(Vault::open(&home.0).unwrap().secret("a").unwrap().bytes.expose().len(), 16 * 1024);
}

#[test]
fn a_secret_serves_the_agents_it_was_sealed_for_and_no_others() {
    let home = TempDir::new();
    let sealer = Sealer::open_or_create(&home.0).unwrap();
    let agents = ["triage".to_owned(), "writer".to_owned()];
    sealer.set_for("github", value(VALUE), &hosts(), &agents, 1).unwrap();
    let vault = Vault::open(&home.0).unwrap();
    let secret = vault.secret("github").unwrap();
    assert!(secret.serves("api.example.com", &agent("triage")));
    assert!(secret.serves("::1", &agent("writer")) && secret.is_for(&agent("writer")));
    for other in ["triag", "triage2", "assistant"] {
        assert!(!secret.serves("api.example.com", &agent(other)), "{other}");
        assert!(!secret.is_for(&agent(other)), "{other}");
    }
    assert!(!secret.serves("example.com", &agent("triage")));
    let listed = sealer.list().unwrap();
    assert_eq!(listed[0].agents, [agent("triage"), agent("writer")]);
    for bad in ["", "A b", "../x", "*"] {
        let refused = sealer.set_for("x", value(VALUE), &hosts(), &[bad.into()], 1);
        assert!(matches!(refused, Err(VaultError::Refused { .. })), "{bad:?}");
    }
    let many: Vec<String> = (0..65).map(|n| format!("a{n}")).collect();
    assert!(sealer.set_for("x", value(VALUE), &hosts(), &many, 1).is_err());
}

#[test]
fn an_edited_header_and_swapped_files_are_noticed() {
    let home = TempDir::new();
    let sealer = Sealer::open_or_create(&home.0).unwrap();
    sealer.set_for("one", value("one-not-real"), &hosts(), &["triage".into()], 1).unwrap();
    sealer.set_for("two", value("two-not-real"), &["b.com".into()], &[], 1).unwrap();
    let vault = Vault::open(&home.0).unwrap();
    let path = |name: &str| home.0.join(format!("vault/{name}.sealed"));
    let (one, two) =
        (fs::read_to_string(path("one")).unwrap(), fs::read_to_string(path("two")).unwrap());
    let edits = [
        (r#"["triage"]"#, r#"["writer"]"#),
        (r#"["triage"]"#, "[]"),
        (r#""agents":["triage"],"#, ""),
        (r#"["triage"]"#, r#"["triage","writer"]"#),
        ("api.example.com", "evil.example.com"),
        (r#""::1""#, r#""evil.com""#),
        (r#""version":2"#, r#""version":1"#),
        (r#""version":2"#, r#""version":3"#),
        (r#""created_ms":1"#, r#""created_ms":2"#),
        (r#""created_ms":1"#, r#""created_ms":1,"more":1"#),
        (r#""created_ms":1"#, r#""created_ms":1 "#),
    ];
    for (from, to) in edits {
        assert!(one.contains(from), "{from} is not in {one}");
        fs::write(path("one"), one.replacen(from, to, 1)).unwrap();
        assert!(matches!(vault.secret("one"), Err(VaultError::Sealed { .. })), "{from} -> {to}");
    }
    // One's header over two's value, and the other way round; then whole files swapped.
    let parts = |text: &str| {
        let (header, body) = text.split_once('\n').unwrap();
        (header.to_owned(), body.to_owned())
    };
    let ((head1, body1), (head2, body2)) = (parts(&one), parts(&two));
    fs::write(path("one"), format!("{head1}\n{body2}")).unwrap();
    fs::write(path("two"), format!("{head2}\n{body1}")).unwrap();
    assert!(vault.secret("one").is_err() && vault.secret("two").is_err());
    fs::write(path("one"), &two).unwrap();
    fs::write(path("two"), &one).unwrap();
    assert!(vault.secret("one").is_err() && vault.secret("two").is_err());
    fs::write(path("one"), &one).unwrap();
    assert_eq!(vault.secret("one").unwrap().bytes.expose(), b"one-not-real");
}

#[test]
fn a_file_of_the_first_version_still_opens_and_serves_every_agent() {
    let home = TempDir::new();
    fs::create_dir(home.0.join("vault")).unwrap();
    for (name, text) in [("identity", V1_IDENTITY), ("old.sealed", V1_SEALED)] {
        let path = home.0.join("vault").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let secret = Vault::open(&home.0).unwrap().secret("old").unwrap();
    assert_eq!(secret.bytes.expose(), VALUE.as_bytes());
    assert!(secret.serves("a.com", &agent("anyone")) && secret.agents.is_empty());
    let sealer = Sealer::open_or_create(&home.0).unwrap();
    assert_eq!(sealer.list().unwrap()[0].hosts, ["a.com"]);
    // Rotated, it is of the present version.
    sealer.rotate(&sealer.info("old").unwrap().unwrap(), value("newer-not-real"), 9).unwrap();
    let text = fs::read_to_string(home.0.join("vault/old.sealed")).unwrap();
    assert!(text.contains(r#""version":2"#), "{text}");
    // An agent written into a file of the first version was not sealed into it.
    let forged = V1_SEALED.replacen(r#""hosts""#, r#""agents":["x"],"hosts""#, 1);
    fs::write(home.0.join("vault/old.sealed"), forged).unwrap();
    assert!(Vault::open(&home.0).unwrap().secret("old").is_err());
}

#[test]
fn rotating_replaces_the_value_and_nothing_else() {
    let home = TempDir::new();
    let sealer = Sealer::open_or_create(&home.0).unwrap();
    sealer.set_for("key", value("old-not-real"), &hosts(), &["triage".into()], 1).unwrap();
    let vault = Vault::open(&home.0).unwrap();
    let path = home.0.join("vault/key.sealed");
    let before = fs::read(&path).unwrap();
    let shown = sealer.info("key").unwrap().unwrap();
    // A value that is refused leaves the old one in place.
    assert!(sealer.rotate(&shown, value("two\nlines"), 5).is_err());
    assert_eq!(fs::read(&path).unwrap(), before);
    sealer.rotate(&shown, value("new-not-real\n"), 5).unwrap();
    let secret = vault.secret("key").unwrap();
    assert_eq!(secret.bytes.expose(), b"new-not-real");
    assert!(secret.serves("api.example.com", &agent("triage")));
    assert!(!secret.serves("api.example.com", &agent("writer")));
    let now = sealer.info("key").unwrap().unwrap();
    assert_eq!((&now.hosts, &now.agents, now.created_ms), (&shown.hosts, &shown.agents, 5));
    // What is no longer as it was shown is not written over: its header may have been edited.
    assert!(matches!(sealer.rotate(&shown, value("x"), 6), Err(VaultError::Refused { .. })));
    assert!(sealer.info("missing").unwrap().is_none());
    assert!(sealer.remove("key").unwrap());
    assert!(matches!(sealer.rotate(&now, value("x"), 6), Err(VaultError::NotFound { .. })));
    let left = fs::read_dir(home.0.join("vault")).unwrap().count();
    assert_eq!(left, 3, "identity, recipient and lock are left, and no temporary file");
}

#[test]
fn where_the_private_key_comes_from_is_known() {
    let home = TempDir::new();
    let file = home.0.join("vault/identity");
    assert_eq!(key_source(&home.0).unwrap(), KeySource::NotYet { path: file.clone() });
    sealed(&home.0);
    assert_eq!(key_source(&home.0).unwrap(), KeySource::File { path: file.clone() });
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(key_source(&home.0), Err(VaultError::Permissions { .. })));
}

#[test]
fn threads_that_make_a_vault_at_once_agree_on_its_key() {
    for _ in 0..10 {
        let home = TempDir::new();
        std::thread::scope(|scope| {
            for n in 0..6 {
                let home = &home;
                scope.spawn(move || {
                    let sealer = Sealer::open_or_create(&home.0).unwrap();
                    sealer.set(&format!("k{n}"), value(VALUE), &hosts(), 1).unwrap();
                });
            }
        });
        let vault = Vault::open(&home.0).unwrap();
        for n in 0..6 {
            assert_eq!(vault.secret(&format!("k{n}")).unwrap().bytes.expose(), VALUE.as_bytes());
        }
    }
}
