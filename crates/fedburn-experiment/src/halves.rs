//! Algorithms with a client half and a server half: one without the other is no algorithm.

use fedburn::strategies::StrategyConfig;
use fedburn::train::RuleConfig;

/// Checks that the rule of clients and the strategy go together.
///
/// # Errors
/// The table of the file that is to blame, and the reason.
pub(crate) fn check(rule: RuleConfig, strategy: &StrategyConfig) -> Result<(), (&'static str, String)> {
    let server = |is: fn(&StrategyConfig) -> bool| strategy.layers().any(is);
    let halves = [
        (
            "scaffold",
            matches!(rule, RuleConfig::Scaffold(_)),
            server(|layer| matches!(layer, StrategyConfig::Scaffold(_))),
            "the control variates are kept by both",
        ),
        (
            "feddyn",
            matches!(rule, RuleConfig::FedDyn(_)),
            server(|layer| matches!(layer, StrategyConfig::FedDyn(_))),
            "each corrects what the other adds",
        ),
    ];
    for (kind, client, server, why) in halves {
        if client && !server {
            return Err(("client", format!("the rule `{kind}` needs [strategy] kind = \"{kind}\": {why}")));
        }
        if server && !client {
            return Err(("strategy", format!("`{kind}` needs [client] rule = {{ {kind} = {{}} }}: {why}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(rule: &str, strategy: &str) -> Option<&'static str> {
        let table: toml::Table = toml::from_str(&format!("rule = {rule}\nstrategy = {strategy}")).unwrap();
        let rule = table["rule"].clone().try_into().unwrap();
        check(rule, &table["strategy"].clone().try_into().unwrap()).err().map(|(table, _)| table)
    }

    #[test]
    fn halves_need_each_other() {
        for kind in ["scaffold", "feddyn"] {
            let (rule, strategy) = (format!("{{ {kind} = {{}} }}"), format!("{{ kind = \"{kind}\" }}"));
            let wrapped = format!("{{ kind = \"norm_clipping\", base = {strategy} }}");
            assert_eq!(told(&rule, &strategy), None);
            assert_eq!(told(&rule, &wrapped), None, "inside a wrapper");
            assert_eq!(told(&rule, "{ kind = \"fedavg\" }"), Some("client"));
            assert_eq!(told("\"sgd\"", &strategy), Some("strategy"));
            assert_eq!(told("\"sgd\"", &wrapped), Some("strategy"));
        }
        assert_eq!(told("{ scaffold = {} }", "{ kind = \"feddyn\" }"), Some("client"));
        assert_eq!(told("{ proximal = { mu = 0.1 } }", "{ kind = \"fedavg\" }"), None);
    }
}
