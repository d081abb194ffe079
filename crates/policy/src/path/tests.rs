use super::{Path, Pattern};

fn surely(pattern: &str, path: &str) -> bool {
    let pattern = Pattern::read(pattern).expect(pattern);
    Path::read(path).is_some_and(|path| pattern.surely(&path))
}

fn maybe(pattern: &str, path: &str) -> bool {
    let pattern = Pattern::read(pattern).expect(pattern);
    Path::read(path).is_none_or(|path| pattern.maybe(&path))
}

#[test]
fn stars_stay_in_their_segment_and_double_stars_do_not() {
    for (pattern, path, want) in [
        ("/", "/", true),
        ("/", "/a", false),
        ("/**", "/", true),
        ("/**", "/a/b/", true),
        ("/repos/**", "/repos", true),
        ("/repos/**", "/repos/a/b", true),
        ("/repos/**", "/reposx", false),
        ("/a/*", "/a/b", true),
        ("/a/*", "/a/", false),
        ("/a/*", "/a/b/c", false),
        ("/a/**/z", "/a/z", true),
        ("/a/**/z", "/a/b/z/c/z", true),
        ("/a/**/z", "/a/b/z/c", false),
        ("/v1/models/*:generate", "/v1/models/some-model:generate", true),
        ("/v1/models/*:generate", "/v1/models/some-model:delete", false),
        ("/*.json", "/a.json", true),
        ("/a*b*c", "/aXbYbZc", true),
        ("/%2A", "/*", true),
        ("/%2A", "/x", false),
    ] {
        assert_eq!(surely(pattern, path), want, "{pattern} {path}");
    }
}

#[test]
fn escapes_are_decoded_on_both_sides() {
    for (pattern, path) in [
        ("/admin", "/%61dmin"),
        ("/%61dmin", "/admin"),
        ("/a:b", "/a%3ab"),
        ("/a%20b", "/a%20b"),
        ("/caf%C3%A9", "/caf%c3%a9"),
        ("/@*%2f*", "/@types%2Fnode"),
        ("/repos/**", "/repos/a%2Fb"),
    ] {
        assert!(surely(pattern, path), "{pattern} {path}");
    }
    // An escaped slash matches a pattern of one reading only: permitted by neither.
    assert!(!surely("/repos/*", "/repos/a%2Fb") && !surely("/repos/*/*", "/repos/a%2Fb"));
    assert!(!surely("/@*%2f*", "/@types/node"));
    assert!(maybe("/repos/*", "/repos/a%2Fb") && maybe("/repos/*/*", "/repos/a%2Fb"));
}

#[test]
fn what_servers_read_differently_is_not_read() {
    for bad in [
        "",
        "a",
        "*",
        "//",
        "//a",
        "/a//b",
        "/.",
        "/..",
        "/a/../b",
        "/a/./b",
        "/%2e%2e/b",
        "/a%2F..%2Fb",
        "/a%2f%2fb",
        "/..;/a",
        "/a;x",
        "/a%3bx",
        "/a\\b",
        "/a%5Cb",
        "/a%00",
        "/a%0d%0a",
        "/%252e",
        "/%",
        "/%4",
        "/%zz",
        "/%u002f",
        "/%c0%af",
        "/%ff",
        "/a b",
        "/é",
        "/a?b",
        "/a#b",
        "/a%3Fb",
        "/a%23b",
        "/%C2%85",
        // Servers that trim dots and blanks, and those that take wide marks for narrow ones.
        "/a/..%20/b",
        "/a/.%20./b",
        "/a/...",
        "/a/%20/b",
        "/a/%20..",
        "/a/..%C2%A0/b",
        "/a/..%E3%80%80/b",
        "/a/%EF%BC%8E%EF%BC%8E/b",
        "/a/.%EF%BC%8E/b",
        "/a/%E2%80%A5/b",
        "/a/%E2%80%A6/b",
        "/a/%E2%80%A4%E2%80%A4/b",
        "/a/%EF%B9%92%EF%B9%92/b",
        "/a/.%C2%AD./b",
        "/a/.%E2%80%8B./b",
        "/a/.%E2%80%8D./b",
        "/a/%C2%AD/b",
        "/a/..%EF%BC%8Fb",
        "/a%EF%BC%8Fb",
        "/a%EF%BC%BCb",
        "/a%EF%B9%A8b",
        "/a%EF%BC%852eb",
    ] {
        assert_eq!(Path::read(bad), None, "{bad}");
    }
    assert_eq!(Path::read(&format!("/{}", "a".repeat(8_192))), None);
}

#[test]
fn forbidding_ignores_what_some_servers_ignore() {
    for path in ["/admin", "/ADMIN", "/admin/", "/Admin.", "/admin%20", "/%41dmin./"] {
        assert!(maybe("/admin", path), "{path}");
        assert!(maybe("/admin/**", path), "{path}");
    }
    assert!(!maybe("/admin", "/administrator") && !maybe("/admin", "/x/admin"));
    assert!(!surely("/admin", "/Admin") && !surely("/admin", "/admin/"));
}

#[test]
fn forbidding_knows_other_forms_of_a_letter_and_second_names_of_a_file() {
    for path in [
        "/ok/%C5%BFecret/a",
        "/ok/%EF%BD%93ecret/a",
        "/ok/%EF%BC%B3ECRET/a",
        "/ok/se%C2%ADcret/a",
        "/ok/secret%C2%A0/a",
        "/ok/secret%E3%80%82/a",
        "/ok/secret%EF%BC%8E/a",
        "/ok/secret::$INDEX_ALLOCATION/a",
        "/ok/secret%3a$i30:$INDEX_ALLOCATION/a",
        "/ok/Secret.:x/a",
        "/ok/SECRET~1/a",
        "/ok/SE12AB~1/a",
        "/ok/SECRE~12/a",
        "/OK~1/secret/a",
        "/ok%2FSECRET~1%2Fa",
    ] {
        assert!(maybe("/ok/secret/**", path), "{path}");
    }
    let same = [
        ("/stra%C3%9Fe", "/STRASSE"),
        ("/%CF%83", "/%CF%82"),
        ("/k", "/%E2%84%AA"),
        ("/admin", "/adm%C4%B1n"),
        ("/admin", "/ADM%C4%B0N"),
        ("/%C3%89", "/e%CC%81"),
        ("/*.php", "/a.%EF%BD%90hp"),
        ("/*.php", "/INDEX~1.PHP"),
        ("/*.php", "/a.php::$DATA"),
    ];
    for (pattern, path) in same {
        assert!(maybe(pattern, path), "{pattern} {path}");
    }
    for path in [
        "/ok/secrets/a",
        "/ok/other:secret/a",
        "/ok/~1/a",
        "/ok/secret~x/a",
        "/ok/much-longer~1/a",
        "/ok/a~1.jpeg/a",
        "/ok/~user/a",
        "/ok/geheim/a",
        "/x/y/secret/a",
    ] {
        assert!(!maybe("/ok/secret/**", path), "{path}");
    }
    // Custom methods of some services, and what is permitted to the letter, stay as they are.
    assert!(!maybe("/v1/models/*:delete", "/v1/models/x:generate"));
    for path in ["/a/x~1", "/a/x:y", "/a/a...b", "/a/.x", "/a/%20x", "/a/..x"] {
        assert!(surely("/a/*", path), "{path}");
    }
    assert!(surely("/%E3%82%A2/**", "/%E3%82%A2/%EF%BC%9F%EF%BC%81"));
}

#[test]
fn inclusion_is_true_only_where_everything_is_included() {
    let includes = |a: &str, b: &str| {
        let read = |p| Pattern::read(p).expect(p);
        read(a).includes(&read(b))
    };
    for (wide, narrow) in [
        ("/**", "/a/*/b"),
        ("/a/**", "/a"),
        ("/a/**", "/a/**/b"),
        ("/a/*", "/a/b*"),
        ("/a*", "/ab*c"),
        ("/a/*", "/a/*"),
    ] {
        assert!(includes(wide, narrow), "{wide} {narrow}");
    }
    for (a, b) in [("/a/*", "/a/**"), ("/a/b*", "/a/*"), ("/a/*", "/a/"), ("/a", "/a/**")] {
        assert!(!includes(a, b), "{a} {b}");
    }
}
