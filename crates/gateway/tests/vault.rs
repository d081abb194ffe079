//! The vault on a real disk: round trip, tampering, permissions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly

mod common;

use common::TempDir;
use nanoclaw_gateway::{Sealer, SecretBytes, Vault, VaultError};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const VALUE: &str = "test-key-not-real";

fn hosts() -> Vec<String> {
    vec!["API.Example.com".into(), "[::1]".into(), "127.0.0.1".into()]
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
    assert!(
        secret.serves("api.example.com") && secret.serves("::1") && !secret.serves("example.com")
    );
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
    sealer.set("b", SecretBytes::new(b"x".into()), &hosts(), 1).unwrap();
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
        assert!(matches!(set(name, b"v", &hosts()), Err(VaultError::Refused { .. })), "{name}");
    }
    for value in [&b""[..], b"\n", b"a\nb", b"a\n\n", b"a\0b", b"a\rb", &[b'x'; 16 * 1024 + 1]] {
        assert!(matches!(set("a", value, &hosts()), Err(VaultError::Refused { .. })));
    }
    for host in ["", "https://a.com", "a.com:443", "a.com/x", "*.a.com"] {
        assert!(
            matches!(set("a", b"v", &[host.into()]), Err(VaultError::Refused { .. })),
            "{host}"
        );
    }
    assert!(set("a", b"v", &[]).is_err());
    assert!(set("a", &[b'x'; 16 * 1024], &hosts()).is_ok());
    assert_eq!(Vault::open(&home.0).unwrap().secret("a").unwrap().bytes.expose().len(), 16 * 1024);
}
