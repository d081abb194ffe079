//! What the kernel tells of a session stands on record, whatever the program says of itself.

use crate::lab::{Lab, Ran};
use crate::totals::records;
use serde_json::Value;

both!(
    what_a_command_executes_and_is_refused_is_on_record,
    whoever_does_without_a_witness_says_so,
    what_detaches_itself_is_on_record_all_the_same,
);

/// Says one thing and does another.
const LIAR: &str = "
import os, socket, subprocess
print('I execute nothing and connect to nobody.')
subprocess.run(['/bin/echo', 'two words'], cwd='/tmp', stdout=subprocess.DEVNULL)
try: socket.socket().connect(('192.0.2.1', 443))
except OSError: pass
try: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
except OSError: pass
";

fn what_a_command_executes_and_is_refused_is_on_record(lab: &Lab) {
    lab.inside(["python3", "-c", LIAR]).ok();
    let executed = records(lab, "process_exec");
    let echo = executed.iter().find(|r| r["path"] == "/bin/echo").expect("it is on record");
    assert_eq!(echo["argv"], serde_json::json!(["/bin/echo", "two words"]));
    assert_eq!(
        (&echo["cwd"], &echo["racy"], &echo["whole"]),
        (&"/tmp".into(), &true.into(), &true.into())
    );
    let images = records(lab, "process_image");
    assert_eq!(images.len(), executed.len(), "{images:#?}");
    let python = images.iter().find(|r| r["exec"] == executed[0]["exec"]).unwrap();
    assert!(python["image"].as_str().is_some_and(|i| i.contains("python3")), "{python}");
    let refused: Vec<(String, String)> = records(lab, "connect_refused")
        .iter()
        .map(|r| (r["target"].as_str().unwrap().into(), r["errno"].as_str().unwrap().into()))
        .collect();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let wanted = [pair("192.0.2.1:443", "ENETUNREACH"), pair("AF_PACKET, raw", "EPERM")];
    assert_eq!(refused, wanted);
    // The totals of the session say how many there were: a missing one shows.
    let closed = records(lab, "session_closed").pop().unwrap();
    let count = |name: &str| closed["counts"][name].as_u64().unwrap();
    assert_eq!(count("kernel_executions"), executed.len() as u64);
    assert_eq!((count("kernel_refusals"), count("kernel_unrecorded")), (2, 0));
    let story = lab.story();
    let line = |text: &str| story.lines().position(|l| l.contains(text)).expect(text);
    assert!(line("A sandbox was ready") < line("The kernel was asked by process"));
    assert!(
        line("was REFUSED 192.0.2.1:443 by the sandbox") < line("The sandbox ended"),
        "{story}"
    );
    // What matters is in the short story, too; each start of a program is not.
    let short = lab.run(["audit", "show"]).ok();
    assert!(short.contains("192.0.2.1:443") && !short.contains("was asked by process"), "{short}");
    lab.run(["audit", "verify"]).ok();
}

fn whoever_does_without_a_witness_says_so(lab: &Lab) {
    let file = lab.home().join("agents/blind.toml");
    lab.file(&file, "schema = 1\n[sandbox]\nwitness = \"off\"\n");
    let ran: Ran = lab.sh(&["--agent", "blind"], "/bin/echo ran");
    assert_eq!(ran.ok(), "ran\n");
    assert_eq!(records(lab, "process_exec"), Vec::<Value>::new());
    let opened = records(lab, "session_opened").pop().unwrap();
    assert!(opened["grants"].to_string().contains("! witness OFF"), "{opened}");
    let walls = records(lab, "sandbox_started").pop().unwrap()["walls"].to_string();
    assert!(walls.contains("off: what is executed is not on record"), "{walls}");
    let closed = records(lab, "session_closed").pop().unwrap();
    assert!(closed["counts"].get("kernel_executions").is_none(), "unknown is not zero: {closed}");
    let short = lab.run(["audit", "show"]).ok();
    assert!(short.contains("what was executed was NOT WATCHED (witness = \"off\")"), "{short}");
    assert!(!short.contains("programs executed"), "{short}");
    let check = lab.run(["policy", "check"]).ok();
    assert!(check.contains("! witness OFF"), "{check}");
}

fn what_detaches_itself_is_on_record_all_the_same(lab: &Lab) {
    // A program that goes on after its parent has left, in a session of its own.
    let script = "setsid sh -c 'sleep 0.2; exec /bin/echo detached' & sleep 0.1; /bin/true";
    lab.sh(&[], script).ok();
    let executed = records(lab, "process_exec");
    assert!(executed.iter().any(|r| r["path"] == "/bin/true"), "{executed:#?}");
    // It ended with its session before it could go on; what was executed until then is there.
    assert!(executed.iter().any(|r| r["argv"].to_string().contains("setsid")), "{executed:#?}");
    let images = records(lab, "process_image");
    assert_eq!(images.len(), executed.len(), "each has its image or the reason why not");
    for one in &images {
        assert_ne!(one["image"].is_null(), one["unseen"].is_null(), "{one}");
    }
}
