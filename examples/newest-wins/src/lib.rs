//! Of two documents that cannot both stand on the target, the one that was changed later stays.
//!
//! Both must say when that was, in a field that the configuration names: a date, or a whole number that grows. What does
//! not say it, or cannot be decided so, such as a validator's refusal, is recorded for a person to look at.

use oplogue_plugin::{Conflict, Failure, Json, Judge, Reason, Ruling};

struct NewestWins {
    field: String,
}

impl Judge for NewestWins {
    fn new(config: &Json) -> Result<Self, Failure> {
        Ok(Self { field: config.text("field").unwrap_or("updatedAt").to_owned() })
    }

    fn rule(&mut self, conflict: &Conflict) -> Result<Ruling, Failure> {
        if !matches!(conflict.reason, Reason::DuplicateId | Reason::UniqueKey) {
            return Ok(Ruling::Record);
        }
        let change = conflict.new_value(&self.field).and_then(|value| value.integer());
        let winner = conflict.winner_value(&self.field).and_then(|value| value.integer());
        Ok(match (change, winner) {
            (Some(change), Some(winner)) if change > winner => Ruling::Overwrite,
            (Some(_), Some(_)) => Ruling::KeepTarget,
            _ => Ruling::Record,
        })
    }
}

oplogue_plugin::export_judge!(NewestWins, manifest = "manifest.json");

#[cfg(test)]
mod tests {
    use super::*;
    use oplogue_plugin::{Op, bson};

    /// `{updatedAt: <number>}`.
    fn at(number: i64) -> Vec<u8> {
        let mut document = vec![0; 4];
        bson::write_element(&mut document, bson::kind::INT64, b"updatedAt", &number.to_le_bytes());
        document.push(0);
        let length = document.len() as u32;
        document[..4].copy_from_slice(&length.to_le_bytes());
        document
    }

    fn rule(reason: Reason, body: Vec<u8>, winner: Vec<u8>) -> Ruling {
        let mut plugin = NewestWins::new(&Json::parse("{}").unwrap()).unwrap();
        let (namespace, message, index) = ("a.b".to_owned(), String::new(), "u_1".to_owned());
        let (key, pattern) = (Vec::new(), Vec::new());
        let conflict =
            Conflict { reason, namespace, op: Op::Insert, ts: 0, code: 0, message, key, body, index, pattern, winner };
        plugin.rule(&conflict).unwrap()
    }

    #[test]
    fn the_later_one_stays() {
        assert_eq!(rule(Reason::UniqueKey, at(2), at(1)), Ruling::Overwrite);
        assert_eq!(rule(Reason::DuplicateId, at(1), at(2)), Ruling::KeepTarget);
        assert_eq!(rule(Reason::UniqueKey, at(2), at(2)), Ruling::KeepTarget);
        assert_eq!(rule(Reason::UniqueKey, at(2), Vec::new()), Ruling::Record);
        assert_eq!(rule(Reason::Validation, at(2), at(1)), Ruling::Record);
    }
}
