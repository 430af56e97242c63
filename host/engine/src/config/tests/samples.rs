//! Files as MongoShake's users have them, written from the facts about its versions 4 and 10.
//!
//! A user changes one binary and expects the file to load; these tests are that promise. The texts are ours: nothing of
//! MongoShake's sample, neither order nor comments, is in them.

use super::*;

/// What a file of version 4 holds: the guide's appendix with its examples.
pub(super) const VERSION_4: &str = include_str!("samples/version-4.conf");
/// What a file of version 10 holds: the sample's keys with the sample's values.
pub(super) const VERSION_10: &str = include_str!("samples/version-10.conf");
/// Hidden keys, old names, lists, units.
pub(super) const RARE: &str = include_str!("samples/rare.conf");

fn list(path: &Path) -> std::io::Result<String> {
    assert_eq!(path, Path::new("/etc/oplogue/black.list"));
    Ok("# not these\nshop.tmp\nlogs\n".to_owned())
}

#[test]
fn a_file_of_version_4_loads() {
    let loaded = conf(VERSION_4);
    assert_eq!(loaded.config.sync_mode, SyncMode::All);
    assert_eq!(loaded.config.sources[0].to_string(), "mongodb://root:***@a.example.net:3717,b.example.net:3717");
    assert!(loaded.config.sources[0].resolve().unwrap().contains("root:Ft%40xxx@"));
    assert_eq!(loaded.config.incr.target_delay, Duration::from_secs(1800));
    assert_eq!(loaded.config.full_sync.create_index, CreateIndex::None);
    assert_eq!(loaded.config.filter.black, ["mongodbtest.customer", "testdata.test123"]);
    assert_eq!(loaded.format, Format::CollectorConf);
    let hints: Vec<_> = loaded.notes.iter().map(|note| note.key.as_str()).collect();
    assert!(hints.contains(&"incr_sync.worker.batch_queue_size"), "{hints:?}");
}

#[test]
fn a_file_of_version_10_loads() {
    let loaded = conf(VERSION_10);
    assert_eq!(loaded.config.incr.fetch_batch_size, 8192);
    assert_eq!(loaded.config.connect_mode, ConnectMode::SecondaryPreferred);
    assert_eq!(loaded.config.log.file.map(|file| file.name).as_deref(), Some("collector.log"));
}

/// Version 9 had a key more than 10, and its sample leaves a number blank.
#[test]
fn a_file_of_version_9_loads() {
    let nine = VERSION_10
        .replace("conf.version = 10", "conf.version = 9")
        .replace("incr_sync.tunnel.write_thread = 8", "incr_sync.tunnel.write_thread =");
    let loaded = conf(&format!("{nine}\nfull_sync.reader.read_document_count = 0\n"));
    assert_eq!(loaded.config, conf(VERSION_10).config);
}

#[test]
fn rare_keys_load() {
    let loaded = parse_with(RARE, Path::new("/etc/oplogue/collector.conf"), &list).unwrap_or_else(|p| panic!("{p}"));
    assert_eq!(loaded.config.filter.black, ["shop.tmp", "logs"]);
    assert_eq!(loaded.config.monitor.incr_http_port, Some(9200));
    assert_eq!(loaded.config.target.to_string(), "mongodb://b.example.net:27017");
    assert_eq!(loaded.config.checkpoint.interval, Duration::from_secs(2));
}

#[test]
fn every_version_from_4_to_14_is_read() {
    for version in 4..=14 {
        let text = VERSION_4.replace("conf.version = 4", &format!("conf.version = {version}"));
        assert_eq!(conf(&text).config, conf(VERSION_4).config);
    }
}

#[test]
fn the_conversion_says_the_same() {
    for sample in [VERSION_4, VERSION_10, RARE] {
        let path = Path::new("/etc/oplogue/collector.conf");
        let before = parse_with(sample, path, &list).unwrap();
        let text = convert::convert_with(sample, path, &list).unwrap();
        let after = toml(&text);
        assert_eq!(after.config, before.config, "{text}");
        assert_eq!(after.changed, before.changed);
        assert_eq!(after.format, Format::Toml);
    }
}

#[test]
fn the_conversion_refuses_what_it_cannot_read() {
    let path = Path::new("c.toml");
    assert!(convert::convert_with(MINIMAL, path, &list).unwrap_err().to_string().contains("TOML already"));
    assert!(convert::convert_with("tunnel = kafka", Path::new("c.conf"), &list).is_err());
}
