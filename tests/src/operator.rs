//! What an operator types, against the real program and a real set: checkpoint commands, exit codes, no secret shown.
//!
//! These commands are used when something is wrong already, so their words are tested and not only their effect. The
//! runs of a whole job are tested elsewhere, never here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bson::{Document, Timestamp, doc};
use oplogue_tests::collector;
use oplogue_tests::paths::Scratch;
use oplogue_tests::servers::{Options, ReplicaSet};

struct Operator {
    scratch: Scratch,
}

impl Operator {
    fn new(toml: &str) -> Self {
        let scratch = Scratch::new("operator").unwrap();
        std::fs::write(scratch.path().join("collector.toml"), toml).unwrap();
        Self { scratch }
    }

    fn dir(&self) -> &Path {
        self.scratch.path()
    }

    fn output(&self, args: &[&str]) -> Output {
        let program: PathBuf = collector::program().unwrap();
        Command::new(program).args(args).current_dir(self.dir()).output().unwrap()
    }

    /// Exit code and everything printed.
    fn says(&self, args: &[&str]) -> (i32, String) {
        let output = self.output(args);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }
}

#[tokio::test]
async fn a_checkpoint_is_shown_set_and_reset() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let uri = set.uri_as_user();
    let operator = Operator::new(&format!(
        "id = \"job\"\nsync_mode = \"all\"\nmongo_urls = \"{uri}\"\ntunnel.address = \"mongodb://127.0.0.1:1\"\n"
    ));
    let (code, text) = operator.says(&["checkpoint", "show"]);
    assert_eq!((code, text.as_str()), (0, "mongoshake.ckpt_default holds no checkpoint\n"));

    let documents = set.client().database("mongoshake").collection::<Document>("ckpt_default");
    let mongoshake =
        doc! { "name": "other", "ckpt": 7_332_946_510_847_410_178_i64, "version": 2, "fetch_method": "oplog" };
    documents.insert_one(mongoshake).await.unwrap();
    let (_, text) = operator.says(&["checkpoint", "show"]);
    assert!(text.contains("MongoShake's, replica set other") && text.contains("Timestamp(1707334656, 2)"), "{text}");

    let set_to = ["checkpoint", "set", "-c", "collector.toml", "1700000000.3"];
    let (code, text) = operator.says(&set_to);
    assert!(code == 2 && text.contains("--yes"), "{code}: {text}");
    let ours = doc! { "_id": { "$regex": "^job/" } };
    assert!(documents.find_one(ours.clone()).await.unwrap().is_none(), "set without --yes wrote something");

    let (code, text) = operator.says(&[&set_to[..], &["--yes"]].concat());
    assert_eq!(code, 0, "{text}");
    let stored = documents.find_one(ours.clone()).await.unwrap().unwrap();
    let position = stored.get_document("position").unwrap();
    assert_eq!(position.get_timestamp("ts").unwrap(), Timestamp { time: 1_700_000_000, increment: 3 });
    let (_, text) = operator.says(&["checkpoint", "show"]);
    assert!(text.contains("Timestamp(1700000000, 3)") && text.contains("incremental"), "{text}");

    // Forward something is left out; backwards nothing is. The set's name is given instead of asked.
    let (_, text) = operator.says(&["checkpoint", "set", "1700000000.4"]);
    assert!(text.contains("WARNING: what happened after 2023-11-14"), "{text}");
    let name = stored.get_str("name").unwrap();
    let earlier = ["checkpoint", "set", "2023-11-14T00:00:00Z", "--yes", "--replica-set", name];
    let (code, text) = operator.says(&earlier);
    assert!(code == 0 && !text.contains("WARNING"), "{text}");
    let (_, text) = operator.says(&["checkpoint", "show", "--json"]);
    assert!(text.contains("1699920000") && text.lines().count() == 2, "{text}");

    let (code, text) = operator.says(&["checkpoint", "reset", "--yes"]);
    assert_eq!(code, 0, "{text}");
    assert!(documents.find_one(ours).await.unwrap().unwrap().get("position").is_none());
}

#[test]
fn mistakes_end_with_two_and_show_no_password() {
    let operator = Operator::new(
        "sync_mode = \"al\"\nmongo_urls = \"mongodb://u:s3cret@127.0.0.1:1\"\ntunnel.address = \"mongodb://v:s3cret@h\"\n",
    );
    for args in [
        &["check", "collector.toml"][..],
        &["run"],
        &["run", "-c", "absent.toml"],
        &["-conf=collector.toml", "-verbose", "9"],
        &["checkpoint", "set", "yesterday"],
        &["checkpoint", "show"],
        &["nonsense"],
    ] {
        let (code, text) = operator.says(args);
        assert_eq!(code, 2, "{args:?}: {text}");
        assert!(!text.is_empty() && !text.contains("s3cret"), "{args:?}: {text}");
    }
    assert_eq!(operator.says(&["-version"]), (0, format!("oplogue {}\n", env!("CARGO_PKG_VERSION"))));
}

#[tokio::test]
async fn a_taken_port_is_named_and_the_log_goes_where_it_should() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let operator = Operator::new(&format!(
        "id = \"job\"\nsync_mode = \"all\"\nmongo_urls = \"mongodb://u:s3cret@127.0.0.1:1\"\n\
         tunnel.address = \"mongodb://127.0.0.1:2\"\nfull_sync.http_port = 0\nincr_sync.http_port = {port}\n\
         log.dir = \"logs\"\nlog.file = \"job.log\"\n"
    ));
    let (code, text) = operator.says(&["run"]);
    assert!(code == 2 && text.contains("incr_sync.http_port"), "{code}: {text}");
    let log = std::fs::read_to_string(operator.dir().join("logs/job.log")).unwrap();
    assert!(log.starts_with("[20") && log.contains("[ERROR]") && log.contains("incr_sync.http_port"), "{log}");
    assert!(!operator.dir().join("logs/job.pid").exists());
}
