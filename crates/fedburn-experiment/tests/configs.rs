//! What cannot run is refused before anything runs, in words that say where and what to do.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{STEADY, Workplace, json};

/// Runs the experiment and asserts that it was refused with `words` and that nothing was made.
fn refused(place: &Workplace, settings: &str, words: &[&str]) {
    place.call(&format!("experiment run suite --out out {settings}")).assert_refused(words);
    assert!(!place.path("out").exists(), "{settings}: a folder was made");
}

/// The same for a file with `from` replaced by `to`.
fn refused_edit(from: &str, to: &str, words: &[&str]) {
    assert!(STEADY.contains(from), "{from}");
    let words: Vec<_> = words.iter().copied().chain(["benches/experiments/suite/name.toml"]).collect();
    refused(&Workplace::new(&STEADY.replace(from, to)), "", &words);
}

#[test]
fn unknown_fields_are_named_with_the_known_ones() {
    refused_edit("batch_size", "batchsize", &["client.batchsize", "unknown field", "`batch_size`"]);
    refused_edit("title =", "titel =", &["titel", "unknown field", "`title`"]);
    refused_edit("kind = \"softmax\"", "kind = \"softmax\", hidden = 3", &["model", "unknown field `hidden`"]);
    refused_edit("kind = \"fedavg\"", "kind = \"fedavg\", lr = 1", &["strategy", "unknown field `lr`"]);
}

#[test]
fn missing_fields_are_named() {
    refused_edit("title = \"A steady federation\"", "", &["missing field `title`"]);
    refused_edit(", batch_size = 32", "", &["client: missing field `batch_size`"]);
    refused_edit("kind = \"softmax\"", "", &["model: missing field `kind`"]);
}

#[test]
fn values_of_the_wrong_type_are_told_in_plain_words() {
    refused_edit("lr = 0.1", "lr = \"fast\"", &["client.lr", "\"fast\"", "expected a number"]);
    refused_edit("rounds = 4", "rounds = -4", &["server.rounds", "-4", "expected a whole number of at least 0"]);
    refused_edit("epochs = 1", "epochs = 1.5", &["client.epochs", "1.5", "expected a whole number"]);
    refused_edit("seeds = [0]", "seeds = 0", &["seeds", "`0`", "expected a list"]);
    refused_edit("{ rounds = 4, checkpoint_every = 3 }", "4", &["server", "`4`", "expected a table"]);
    refused_edit("{ kind = \"softmax\" }", "\"softmax\"", &["model", "softmax", "expected a table"]);
}

#[test]
fn impossible_values_are_told_with_table_field_value_and_expectation() {
    refused_edit("lr = 0.1", "lr = -0.1", &["[client]", "`lr` is -0.1", "expected a number above 0"]);
    refused_edit("rounds = 4", "rounds = 4, min_updates = 0", &["[server]", "`min_updates` is 0", "at least 1"]);
    refused_edit("per_round = 3", "per_round = 7", &["[sampler]", "`per_round` is 7", "1 to 6"]);
    refused_edit("client_holdout = 0.2", "client_holdout = 1.0", &["[evaluation]", "`client_holdout` is 1", "[0, 1)"]);
    let flat = "client_holdout = 0.2, sharpness = { points = 4 }";
    refused_edit("client_holdout = 0.2", flat, &["[evaluation.sharpness]", "`points` is 4", "odd"]);
    let momentum = "rule = { scaffold = {} }, momentum = 0.5";
    refused_edit("rule = \"sgd\"", momentum, &["[client]", "`momentum` is 0.5", "`scaffold`"]);
    let pull = "rule = { proximal = { mu = 10.0 } }";
    refused_edit("rule = \"sgd\"", pull, &["[client]", "`rule.proximal.mu` is 10", "overshoot"]);
    refused_edit("alpha = 0.5", "alpha = 0.0", &["[partition]", "`alpha` is 0", "expected"]);
    refused_edit("seeds = [0]", "seeds = [0, 5, 0]", &["seeds", "0 twice"]);
    refused_edit("seeds = [0]", "seeds = []", &["seeds", "at least one"]);
    refused_edit("{ kind = \"fedavg\" }", "{ kind = \"fedavg\", server_lr = 0 }", &["server_lr = 0", "above 0"]);
    let zero = "rounds = 4, checkpoint_every = 3 }\nbaselines = { centralised_epochs = 0 }";
    refused_edit("rounds = 4, checkpoint_every = 3 }", zero, &["[baselines]", "`centralised_epochs` is 0"]);
    let unreachable = "title = \"x\"\navailability = { probability = 0.0 }";
    refused_edit("title = \"A steady federation\"", unreachable, &["[availability]", "`probability` is 0"]);
}

#[test]
fn a_split_that_cannot_be_is_refused_with_the_reason() {
    // 1,438 training examples.
    refused_edit("min_examples = 10", "min_examples = 240", &["[partition]", "1440", "1438", "min_examples"]);
}

#[test]
fn a_strategy_that_learns_on_the_server_needs_examples_there() {
    refused_edit("\"fedavg\"", "\"feddf\"", &["[strategy]", "`feddf`", "server_data = { share = 0.1 }"]);
    let share = |share: &str| format!("server_data = {{ share = {share} }}\nevaluation");
    refused_edit("evaluation", &share("0.0"), &["[server_data]", "`share`", "above 0 and below 1"]);
    refused_edit("evaluation", &share("1.0"), &["[server_data]", "`share`", "above 0 and below 1"]);
}

#[test]
fn a_rule_that_compares_features_needs_a_model_with_features() {
    refused_edit("\"sgd\"", "{ moon = {} }", &["[model]", "nothing but a head", "`moon`"]);
    refused_edit("\"fedavg\"", "\"fedgen\"", &["[model]", "nothing but a head", "`fedgen` makes"]);
    let twice = "{ kind = \"projected\", body = { kind = \"projected\", body = { kind = \"two_nn\" } } }";
    refused_edit("{ kind = \"softmax\" }", twice, &["[model]", "body is", "without a projection"]);
}

#[test]
fn memory_that_nobody_can_train_in_is_told_with_what_would_do() {
    let rule = |memory: &str| format!("rule = {{ depthwise = {{ memory = {memory} }} }}");
    refused_edit("rule = \"sgd\"", &rule("'64 MB'"), &["client.rule", "`64 MB` is no amount", "\"64 MiB\""]);
    refused_edit("rule = \"sgd\"", &rule("[]"), &["[client]", "`rule.depthwise.memory` is 0", "at least one group"]);
    refused_edit("rule = \"sgd\"", &rule("'64 MiB'"), &["[model]", "not made of blocks", "preresnet20"]);
    let place = Workplace::new(&small_memory("['2 KiB', '1 KiB']"));
    let words = ["[client]", "`rule.depthwise.memory`", "insufficient memory: 2.00 KiB", "expected at least"];
    refused(&place, "", &words);
    place.call("plan suite").assert_refused(&words);
    let words = ["[client]", "`rule` has no account of its memory", "depthwise", "measured in a run"];
    Workplace::new(&STEADY.replace("\"sgd\"", "{ ntd = {} }")).call("plan suite").assert_refused(&words);
    Workplace::new(STEADY).call("plan suite").assert_refused(&["[model]", "not made of blocks", "preresnet20"]);

    place.write("benches/experiments/suite/name.toml", small_memory("['2 KiB', '1 GiB']"));
    let plan = place.succeed("plan suite/name").stdout;
    for line in
        ["suite/name", "  9 blocks", "group 0: clients 0 to 2, 2.00 KiB", "  insufficient memory", "stem 1 2 3 4"]
    {
        assert!(plan.contains(line), "`{line}` is not in\n{plan}");
    }
    let json = &place.succeed("plan suite/name --json").stdout;
    let plan: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(plan["groups"][1]["cut"]["parts"][0]["blocks"]["end"], 9, "{json}");
    assert!(plan["groups"][0]["cut"].is_null());
    place.succeed("experiment run suite --quiet --out out --set server.rounds=1 --set sampler.per_round=6");
    let events = fs::read_to_string(place.seed("out", 0).join("events.jsonl")).unwrap();
    assert!(events.contains("insufficient memory"), "{events}");
}

#[test]
fn a_plan_says_what_a_step_takes_where_nothing_is_cut() {
    let net = |width: usize| STEADY.replace("\"softmax\"", &format!("\"preresnet20\", width = {width}"));
    let groups = |config: String| {
        let place = Workplace::new(&config);
        let plan: serde_json::Value = serde_json::from_str(&place.succeed("plan suite/name --json").stdout).unwrap();
        (plan["groups"].as_array().unwrap().clone(), place.succeed("plan suite/name").stdout)
    };
    let (narrow, text) = groups(net(2));
    assert!(text.contains("group 0: clients 0 to 5, the whole model: 4500 parameters, a step takes "), "{text}");
    let slim = "rule = { heterofl = { shares = [0.5, 1.0] } }";
    let (mixed, text) = groups(net(4).replace("rule = \"sgd\"", slim));
    assert!(text.contains("group 0: clients 0 to 2, 0.5 of the channels: 4500 parameters"), "{text}");
    assert!(text.contains("group 1: clients 3 to 5, the whole model: "), "{text}");
    assert_eq!(mixed[0]["step"], narrow[0]["step"], "half of four channels are two");
}

#[test]
fn parts_of_the_model_go_with_means_alone() {
    let parts = STEADY
        .replace("\"softmax\"", "\"two_nn\", hidden = 8")
        .replace("rule = \"sgd\"", "rule = { heterofl = { shares = [0.5, 1.0] } }");
    let words = ["[strategy]", "`median` looks at single updates", "parts of the model", "fedavg"];
    refused(&Workplace::new(&parts.replace("\"fedavg\"", "\"median\"")), "", &words);
    let place = Workplace::new(&(parts + "compression = { down = { kind = \"int8\" } }\n"));
    refused(&place, "", &["[compression]", "`down` goes by blocks", "f16"]);
}

#[test]
fn more_memory_counts_more_where_there_are_groups_and_a_mean() {
    let weighted = |memory: &str| small_memory(memory).replace("memory = ", "resource_weight = true, memory = ");
    let words = ["[client]", "`rule.depthwise.resource_weight` is true", "one group", "shares = [0.25"];
    refused(&Workplace::new(&weighted("'1 GiB'")), "", &words);
    refused(&Workplace::new(&weighted("'machine'")), "", &words);
    let (groups, run) = (weighted("['1 MiB', '1 GiB']"), "experiment run suite --quiet --out out");
    let words = ["[client]", "`rule.depthwise.resource_weight` is true", "`median` looks at single updates", "fedavg"];
    refused(&Workplace::new(&groups.replace("\"fedavg\"", "\"median\"")), "", &words);
    let hash = |config: &str| {
        let place = Workplace::new(config);
        place.succeed(&format!("{run} --set server.rounds=1 --set sampler.per_round=6"));
        json(&place.seed("out", 0).join("summary.json"))["model_hash"].clone()
    };
    assert_ne!(hash(&groups), hash(&groups.replace("resource_weight = true", "resource_weight = false")));
}

#[test]
fn somebody_trains_the_head_that_predicts() {
    let own = |memory: &str, heads: &str| {
        small_memory(memory)
            .replace("\"preresnet20\", width = 2", "\"with_exits\", body = { kind = \"preresnet20\", width = 2 }")
            .replace("memory = ", &format!("heads = \"{heads}\", memory = "))
    };
    let words = ["[client]", "`rule.depthwise.heads` is own", "model's head", "whole model, ", "shares = [0.5, 1.0]"];
    let place = Workplace::new(&own("{ shares = [0.7, 0.9] }", "own"));
    refused(&place, "", &words);
    place.call("plan suite").assert_refused(&words);
    // The one client there is has the memory of the first group.
    let one = own("{ shares = [0.7, 1.0] }", "own").replace("clients = 6", "clients = 1");
    refused(&Workplace::new(&one.replace("per_round = 3", "per_round = 1")), "", &words);
    for (memory, heads) in [("{ shares = [0.7, 1.0] }", "own"), ("{ shares = [0.7, 0.9] }", "shared")] {
        let place = Workplace::new(&own(memory, heads));
        place.succeed("experiment run suite --quiet --out out --set server.rounds=1");
    }
}

/// The steady federation with an ensemble of small nets.
fn ensemble(model: &str, rule: &str) -> String {
    STEADY.replace("\"softmax\"", model).replace("rule = \"sgd\"", &format!("rule = {{ {rule} }}"))
}

#[test]
fn members_of_an_ensemble_are_dealt_anew_in_each_round() {
    let mix = ensemble("\"split_mix\", nets = 2, width = 1", "split_mix = { nets = [1, 2] }");
    let feedback = "compression = { up = { kind = \"int8\" }, error_feedback = true }\n";
    let words = ["[compression]", "`error_feedback`", "`split_mix`", "another in each round"];
    refused(&Workplace::new(&(mix.clone() + feedback)), "", &words);
    let other = mix.replace("split_mix = { nets", "depth_fl = { classifiers");
    refused(&Workplace::new(&other), "", &["[client]", "`rule` is depth_fl", "kind = \"split_mix\""]);
    Workplace::new(&mix).succeed("experiment run suite --quiet --out out --set server.rounds=2");
}

#[test]
fn every_size_of_client_takes_part() {
    let depths = "\"depth_fl\", exits = [1, 9], width = 1";
    let place = Workplace::new(&ensemble(depths, "depth_fl = { classifiers = [1, 2] }"));
    place.succeed("experiment run suite --quiet --out out --set server.rounds=2");
    let sizes = ensemble(depths, "inclusive_fl = { sizes = [1, 2] }");
    refused(&Workplace::new(&sizes), "", &["[client]", "the rule `inclusive_fl` needs"]);
    let place = Workplace::new(&sizes.replace("\"fedavg\"", "\"inclusive_fl\""));
    place.succeed("experiment run suite --quiet --out out --set server.rounds=2");
    let summary = json(&place.seed("out", 0).join("summary.json"));
    assert_eq!((&summary["rounds"], &summary["failures"]), (&2.into(), &0.into()), "{summary}");
}

/// The steady federation with a model of blocks, and this much memory.
fn small_memory(memory: &str) -> String {
    STEADY
        .replace("\"softmax\"", "\"preresnet20\", width = 2")
        .replace("rule = \"sgd\"", &format!("rule = {{ depthwise = {{ memory = {memory} }} }}"))
}

#[test]
fn unknown_kinds_list_the_known_ones() {
    refused_edit("\"dirichlet\"", "\"dirichelet\"", &["partition.kind", "`dirichelet`", "`dirichlet`", "`shards`"]);
    refused_edit("\"softmax\"", "\"resnet9\"", &["model.kind", "`resnet9`", "`two_nn`", "`resnet18`"]);
    refused_edit("\"fedavg\"", "\"fedsgd\"", &["strategy.kind", "`fedsgd`", "`fedavg`"]);
    refused_edit("\"digits\"", "\"letters\"", &["data.kind", "`letters`", "`fashion_mnist`"]);
    refused_edit("\"uniform\"", "\"unifrom\"", &["sampler.kind", "`unifrom`", "`uniform`"]);
}

#[test]
fn missing_data_names_the_command_that_gets_it() {
    let words = ["[data]", "`mnist`", "data/mnist", "data fetch mnist"];
    refused_edit("kind = \"digits\"", "kind = \"mnist\"", &words);
}

#[test]
fn a_syntax_error_shows_its_line() {
    refused_edit("sampler = {", "sampler = = {", &["line 10", "sampler = = {"]);
}

#[test]
fn claims_that_could_never_be_met_are_refused() {
    let claim = |text: &str| format!("checkpoint_every = 3 }}\n[[expect]]\n{text}");
    let refused = |text: &str, words: &[&str]| refused_edit("checkpoint_every = 3 }", &claim(text), words);
    refused("metric = \"acuracy\"\nat_least = 0.5", &["[expect]", "`acuracy`", "accuracy_over_centralised"]);
    refused("metric = \"accuracy\"", &["[expect]", "no bound", "at_least"]);
    refused("metric = \"loss\"\nat_most = 1\nat_round = 9", &["[expect]", "`at_round` is 9", "rounds = 4"]);
    let over = "metric = \"accuracy_over_centralised\"\nat_least = 0.0";
    refused(over, &["[expect]", "[baselines] centralised_epochs"]);
}

#[test]
fn overrides_are_checked_like_the_file() {
    let place = Workplace::new(STEADY);
    refused(&place, "--set client.lrr=0.1", &["client.lrr", "unknown field"]);
    refused(&place, "--set client.lr=-1", &["[client]", "`lr` is -1"]);
    refused(&place, "--set client.lr", &["--set client.lr", "table.field=value"]);
    refused(&place, "--set =1", &["--set =1", "name is empty"]);
    refused(&place, "--set title.x=1", &["--set title.x=1", "`title` is not a table"]);
    refused(&place, "--seeds 1,1", &["seeds", "1 twice"]);
    refused(&place, "--seeds 3..3", &["--seeds 3..3", "expected"]);
}

#[test]
fn overrides_take_effect() {
    let place = Workplace::new(STEADY);
    place.succeed("experiment run suite --quiet --out out --set server.rounds=1 --set strategy.weighting=uniform");
    let config = fs::read_to_string(place.seed("out", 0).join("config.toml")).unwrap();
    assert!(config.contains("rounds = 1") && config.contains("weighting = \"uniform\""), "{config}");
}

#[test]
fn unknown_names_are_told_with_the_known_ones() {
    let place = Workplace::new(STEADY);
    place.call("experiment run siute").assert_refused(&["`siute`", "suite"]);
    place.call("experiment run suite/nmae").assert_refused(&["`suite/nmae`", "suite"]);
    place.call("experiment run no.toml").assert_refused(&["no.toml", "No such file"]);
    place.call("experiment run suite --configs nowhere").assert_refused(&["nowhere", "--configs"]);
    refused(&place, "--backend gpu", &["`gpu`", "flex, ndarray, cuda, wgpu, tch"]);
}

#[test]
fn cuda_without_a_gpu_is_an_error_and_costs_nobody_their_results() {
    if std::path::Path::new("/dev/nvidia0").exists() {
        eprintln!("a GPU is attached: nothing to refuse");
        return;
    }
    let place = Workplace::new(STEADY);
    refused(&place, "--backend cuda", &["`cuda`", "NVIDIA", "--backend flex"]);
    place.succeed("experiment run suite --quiet --out out");
    let before = place.everything("out");
    let words = ["`cuda`", "--backend flex"];
    place.call("experiment run suite --quiet --out out --fresh --backend cuda").assert_refused(&words);
    assert!(place.everything("out") == before);
}

#[test]
fn every_target_is_checked_before_the_first_one_runs() {
    let place = Workplace::new(STEADY);
    place.write("benches/experiments/suite/worse.toml", STEADY.replace("lr = 0.1", "lr = 0.0"));
    refused(&place, "", &["worse.toml", "`lr` is 0"]);
}

#[test]
fn results_of_another_configuration_are_kept_unless_told_otherwise() {
    let place = Workplace::new(&STEADY.replace("seeds = [0]", "seeds = [1]"));
    place.succeed("experiment run suite --quiet --out out");
    let hash = json(&place.seed("out", 1).join("run.json"))["config_hash"].clone();
    let before = place.everything("out");
    let words = ["seed-1", "another configuration", "--fresh", "--out"];
    // Seed 0 is free, but nothing of this command may run.
    place.call("experiment run suite --quiet --out out --seeds 0,1 --set client.lr=0.2").assert_refused(&words);
    assert!(place.everything("out") == before);
    // What cannot change results is not another configuration.
    place.succeed("experiment run suite --quiet --out out --workers 1 --set title=other");
    place.succeed("experiment run suite --quiet --out out --set client.lr=0.2 --fresh");
    assert_ne!(json(&place.seed("out", 1).join("run.json"))["config_hash"], hash);
    let config = fs::read_to_string(place.seed("out", 1).join("config.toml")).unwrap();
    assert!(config.contains("lr = 0.2"), "{config}");
}

#[test]
fn help_says_what_the_program_does() {
    let place = Workplace::new(STEADY);
    assert!(place.succeed("--help").stdout.starts_with("Federated learning experiments"));
    for command in ["experiment run", "experiment sweep", "aggregate", "partition", "data fetch"] {
        assert!(place.succeed(&format!("{command} --help")).stdout.contains("Usage: fedburn"), "{command}");
    }
    place.call("experiment comapre").assert_refused(&["comapre", "'compare'"]);
}
