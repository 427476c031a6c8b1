//! The chart: that it renders to what Kubernetes takes, refuses what cannot work, and says of the agent what is so.
//!
//! What it does on a node is in `helm_pod.rs` and `helm_node.rs`.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use penstock_tests::{agent, chart, require, workdir::Workdir, workspace};
use serde_json::Value;

/// The oldest release of Kubernetes that Chart.yaml takes and a recent one.
const RELEASES: [&str; 2] = ["1.26", "1.36"];

#[test]
fn every_values_file_lints_and_renders_to_what_kubernetes_takes() {
    require!(chart::cannot());
    assert!(chart::file("Chart.yaml").contains(&format!("kubeVersion: \">={}.0-0\"", RELEASES[0])));
    let work = Workdir::new();
    let mut paths = Vec::new();
    for values in chart::values() {
        let lint = chart::helm(&["lint", "--strict"], &values, &[]);
        let said = String::from_utf8_lossy(&lint.stdout).into_owned();
        assert!(lint.status.success() && !said.contains("[WARN"), "{values}: {said}");
        let path = work.join(&format!("{values}.yaml"));
        // Without the operator's kinds, of which there are no schemas.
        fs::write(&path, chart::render(&values, false)).expect("room");
        paths.push(path);
    }
    for release in RELEASES {
        assert_eq!(chart::invalid(&paths, release), None, "Kubernetes {release}");
    }
}

#[test]
fn what_the_checker_is_for_is_found_by_it() {
    require!(chart::cannot());
    let work = Workdir::new();
    let path = work.join("wrong.yaml");
    fs::write(&path, chart::render("pod", false).replace("mountPropagation:", "mountPropogation:")).expect("room");
    assert!(chart::invalid(&[path], RELEASES[1]).is_some_and(|said| said.contains("mountPropogation")));
}

/// The `helm install` commands of a page, each as words: lines that end with a backslash go on.
fn installs(page: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(workspace::root().join(page)).expect("the page").replace("\\\n", " ");
    let commands = text.lines().filter_map(|line| line.strip_prefix("$ helm install "));
    commands.map(|command| command.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn what_the_guides_type_for_a_cluster_renders_to_what_kubernetes_takes() {
    require!(chart::cannot());
    let work = Workdir::new();
    let (mut paths, mut of_k3s) = (Vec::new(), 0);
    for page in ["docs/getting-started.md", "helm/penstock/README.md"] {
        for words in installs(page) {
            assert!(["./helm/penstock", "."].contains(&words[1].as_str()), "{page}: {words:?}");
            let text = chart::template(&words[0], &words[2..]);
            of_k3s += usize::from(text.contains("/var/lib/rancher/k3s/"));
            let path = work.join(&format!("{}.yaml", paths.len()));
            fs::write(&path, text).expect("room");
            paths.push(path);
        }
    }
    assert!(paths.len() >= 5 && of_k3s >= 2, "{paths:?}");
    assert_eq!(chart::invalid(&paths, RELEASES[1]), None);
}

/// Compares with what is committed; the new text is left where it can be copied from.
fn is_as_committed(committed: &Path, now: &str) {
    if fs::read_to_string(committed).is_ok_and(|then| then == now) {
        return;
    }
    let new = workspace::target().join(committed.file_name().expect("a name"));
    fs::write(&new, now).expect("room in the target directory");
    panic!(
        "{} is not what is made now; review it and: cp {} {}",
        committed.display(),
        new.display(),
        committed.display()
    );
}

#[test]
fn renders_are_as_they_were_reviewed() {
    require!(chart::cannot());
    for values in chart::values() {
        let text = chart::render(&values, true);
        // Files of the chart that are shown whole, and a digest over them, are reviewed where they are.
        let mut shown = Vec::new();
        let mut is_file = false;
        for line in text.lines().filter(|line| !line.contains("checksum/config:")) {
            is_file &= line.starts_with("    ") || line.is_empty();
            if !is_file {
                shown.push(line);
            }
            is_file |= ["  node.sh: |", "  penstock.json: |", "  groups:"].contains(&line);
        }
        let path = workspace::root().join(format!("tests/fixtures/helm/{values}.yaml"));
        is_as_committed(&path, &format!("{}\n", shown.join("\n")));
    }
}

#[test]
fn values_that_cannot_work_are_refused_with_their_reason() {
    require!(chart::cannot());
    for (values, set, reason) in [
        ("service", "image.repository=", "/image/repository"),
        ("service", "imag.repository=x", "imag"),
        ("service", "mode=daemon", "/mode"),
        ("service", "node.distribution=k0s", "/node/distribution"),
        ("service", "config.cache.cpa=1GiB", "cpa"),
        ("service", "config.state_dir=/elsewhere", "state_dir"),
        ("service", "config.snapshotter.enable=false", "snapshotter"),
        ("service", "config.fetch.requests_in_flight=64", "requests_in_flight"),
        ("service", "node.binDir=bin", "/node/binDir"),
        ("service", "node.binDir=/opt/a b", "/node/binDir"),
        ("service", "updateStrategy.rollingUpdate.maxSurge=1", "maxSurge"),
        ("service", "terminationGracePeriodSeconds=5", "/terminationGracePeriodSeconds"),
        // Pods of the node itself would need the agent, whose pod needs them.
        ("pod", "containerd.runtimeClass=", "/containerd"),
        ("pod", "containerd.runtimeClass=Lazy", "/containerd/runtimeClass"),
        ("service", "api.port=9180", "/api"),
        ("service", "podMonitor.enabled=true", "/api"),
        ("pod", "networkPolicy.enabled=true", "/hostNetwork"),
        ("metrics", "hostNetwork=false", "/hostNetwork"),
    ] {
        let out = chart::helm(&["template", "penstock"], values, &["--set", set]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(reason), "{values} with {set}: {said}");
    }
}

/// The object of a kind that has the release's own name.
fn object(values: &str, kind: &str) -> Value {
    let is_own = |one: &Value| ["penstock", "lazy"].map(Value::from).contains(&one["metadata"]["name"]);
    chart::objects(values, kind).into_iter().find(is_own).expect("the object")
}

#[test]
fn the_agent_takes_every_config_that_is_rendered() {
    require!(chart::cannot());
    let work = Workdir::new();
    for values in chart::values() {
        let config = object(&values, "ConfigMap");
        let text = config["data"]["config.toml"].as_str().expect("a config").to_owned();
        let path = work.join("config.toml");
        fs::write(&path, text).expect("room");
        let out = Command::new(agent::binary()).args(["agent", "--print-config", "--config"]).arg(&path).output();
        let out = out.expect("penstock starts");
        assert!(out.status.success(), "{values}: {}", String::from_utf8_lossy(&out.stderr));
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(said.contains("enable = \"true\" # ") && said.contains("format = \"json\" # "), "{values}: {said}");
    }
}

/// Every key of the agent's config, dotted.
fn keys() -> BTreeSet<String> {
    let out = Command::new(agent::binary()).args(["agent", "--print-config"]).output().expect("penstock starts");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let (mut table, mut keys) = (String::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((name, rest)) = line.trim_start_matches("# ").split_once(' ')
            && (rest.starts_with("= \"") || rest.starts_with("is not set"))
        {
            keys.insert(format!("{table}{name}"));
        }
    }
    keys
}

/// What the chart decides by itself.
const OURS: [&str; 17] = [
    "state_dir",
    "socket",
    "listen",
    "api.token_file",
    "api.tls_cert",
    "api.tls_key",
    "api.plain_token",
    "cache.dir",
    "fetch.hosts_dirs",
    "credentials.secret_dirs",
    "snapshotter.enable",
    "snapshotter.root",
    "snapshotter.socket",
    "images.socket",
    "images.containerd",
    "log.format",
    "traces.token_file",
];

#[test]
fn the_schema_knows_the_agents_settings_and_no_others() {
    let schema: Value = serde_json::from_str(&chart::file("values.schema.json")).expect("JSON");
    let names = |table: &Value| -> Vec<String> {
        table["properties"].as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default()
    };
    let config = &schema["properties"]["config"];
    let mut known: BTreeSet<String> = OURS.iter().map(|&key| key.to_owned()).collect();
    for name in names(config) {
        let of = &config["properties"][&name];
        assert!(of["$ref"].is_string() || of["additionalProperties"] == false, "{name} is not closed");
        let inner = names(of);
        known.extend(inner.iter().map(|key| format!("{name}.{key}")));
        known.extend(inner.is_empty().then_some(name));
    }
    assert_eq!(known, keys());
}

/// Every part of the schema that describes an object says which keys it has.
#[test]
fn every_value_has_a_place_in_the_schema() {
    require!(chart::cannot());
    let schema: Value = serde_json::from_str(&chart::file("values.schema.json")).expect("JSON");
    let values = chart::parsed(&[chart::dir().join("values.yaml")]).remove(0).remove(0);
    let paths = |value: &Value| -> BTreeSet<String> {
        value.as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect()
    };
    let known = paths(&schema["properties"]);
    assert!(paths(&values).is_subset(&known), "{:?}", paths(&values).difference(&known));
    assert_eq!(schema["additionalProperties"], false);
}

#[test]
fn the_unit_is_the_packaged_one() {
    let packaged = fs::read_to_string(workspace::root().join("packaging/penstock.service")).expect("the unit");
    assert_eq!(chart::file("files/penstock.service"), packaged, "cp packaging/penstock.service helm/penstock/files/");
    // What the chart replaces in it is there.
    for text in [
        "/usr/local/bin/penstock",
        "Before=containerd.service",
        "RequiresMountsFor=/var/lib/penstock /var/lib/containerd",
    ] {
        assert_eq!(packaged.matches(text).count(), 1, "{text}");
    }
}

#[test]
fn the_rendered_unit_names_the_nodes_containerd_and_disks() {
    require!(chart::cannot());
    let unit = |values: &str| -> String {
        object(values, "ConfigMap")["data"]["penstock.service"].as_str().expect("a unit").to_owned()
    };
    let rke2 = unit("rke2");
    for line in [
        "ExecStart=/opt/penstock/bin/penstock agent --log-format json",
        "Before=rke2-server.service rke2-agent.service",
        "RequiresMountsFor=/var/lib/penstock /var/lib/rancher/rke2/agent/containerd /mnt/nvme/penstock",
    ] {
        assert!(rke2.lines().any(|one| one == line), "{line} in {rke2}");
    }
    assert!(unit("service").contains("\nBefore=containerd.service\n"));
}

/// The keys of `values.yaml` with a description, as a table: what README.md shows.
fn reference(values: &Value) -> String {
    let text = chart::file("values.yaml");
    let (mut rows, mut path, mut about) = (Vec::new(), Vec::<String>::new(), String::new());
    for line in text.lines() {
        let depth = (line.len() - line.trim_start().len()) / 2;
        let line = line.trim();
        if let Some(start) = line.strip_prefix("# -- ") {
            about = start.to_owned();
        } else if let Some(more) = line.strip_prefix("# ") {
            if !about.is_empty() {
                about = format!("{about} {more}");
            }
        } else if let Some((key, _)) = line.split_once(':').filter(|(key, _)| !key.contains(['-', '{', ' '])) {
            path.truncate(depth);
            path.push(key.to_owned());
            if !about.is_empty() {
                let value = path.iter().fold(values, |value, key| &value[key]);
                rows.push(format!("| `{}` | `{value}` | {about} |", path.join(".")));
            }
            about.clear();
        }
    }
    format!("| value | default | what |\n|---|---|---|\n{}\n", rows.join("\n"))
}

#[test]
fn the_readme_lists_every_value_as_it_is_described() {
    require!(chart::cannot());
    let values = chart::parsed(&[chart::dir().join("values.yaml")]).remove(0).remove(0);
    let table = reference(&values);
    assert!(table.lines().count() > 50, "{table}");
    let text = chart::file("README.md");
    let (head, rest) =
        text.split_once("<!-- values: made by tests/tests/helm.rs -->\n").expect("a place for the table");
    let (_, tail) = rest.split_once("<!-- end of values -->").expect("its end");
    let now = format!("{head}<!-- values: made by tests/tests/helm.rs -->\n{table}<!-- end of values -->{tail}");
    is_as_committed(&chart::dir().join("README.md"), &now);
}

/// The pods of a render: of the DaemonSets, and alone.
fn pods(values: &str) -> Vec<Value> {
    let sets = chart::objects(values, "DaemonSet").into_iter().map(|set| set["spec"]["template"]["spec"].clone());
    sets.chain(chart::objects(values, "Pod").into_iter().map(|pod| pod["spec"].clone())).collect()
}

#[test]
fn no_pod_has_a_token_of_the_cluster_and_no_object_gives_rights() {
    require!(chart::cannot());
    for values in chart::values() {
        for pod in pods(&values) {
            assert_eq!(pod["automountServiceAccountToken"], false, "{values}");
            assert_eq!(pod["enableServiceLinks"], false, "{values}");
        }
        for kind in ["Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"] {
            assert!(chart::objects(&values, kind).is_empty(), "{values}: {kind}");
        }
    }
}

#[test]
fn only_what_works_on_the_node_is_privileged_and_nothing_writes_to_its_own_image() {
    require!(chart::cannot());
    for values in chart::values() {
        for pod in pods(&values) {
            let of = |kind: &str| pod[kind].as_array().cloned().unwrap_or_default();
            for container in of("initContainers").into_iter().chain(of("containers")) {
                let (name, context) = (&container["name"], &container["securityContext"]);
                assert_eq!(context["readOnlyRootFilesystem"], true, "{values}: {name}");
                let works_on_node = ["install", "remove", "agent"].contains(&name.as_str().expect("a name"));
                assert_eq!(context["privileged"] == true, works_on_node, "{values}: {name}");
                if !works_on_node {
                    assert_eq!(context["capabilities"]["drop"][0], "ALL", "{values}: {name}");
                    assert_eq!(context["allowPrivilegeEscalation"], false, "{values}: {name}");
                }
            }
        }
    }
}

#[test]
fn what_containerd_is_told_of_is_at_the_same_path_inside_and_outside_of_the_pod() {
    require!(chart::cannot());
    for values in ["pod", "full"] {
        let pod = object(values, "DaemonSet")["spec"]["template"]["spec"].clone();
        let agent = &pod["containers"][0];
        let volumes = pod["volumes"].as_array().expect("volumes");
        let mut shared = Vec::new();
        for mount in agent["volumeMounts"].as_array().expect("mounts") {
            let volume = volumes.iter().find(|one| one["name"] == mount["name"]).expect("its volume");
            let Some(outside) = volume["hostPath"]["path"].as_str() else { continue };
            assert_eq!(mount["mountPath"], outside, "{values}");
            shared.extend((mount["mountPropagation"] == "Bidirectional").then(|| outside.to_owned()));
        }
        assert_eq!(
            shared,
            ["/var/lib/penstock", "/var/lib/containerd/io.containerd.snapshotter.v1.penstock"],
            "{values}"
        );
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(
                agent[probe]["exec"]["command"][1], "version",
                "{values}: {probe} asks the agent, not a registry"
            );
        }
    }
}

#[test]
fn nodes_are_updated_one_at_a_time_when_the_one_before_is_ready() {
    require!(chart::cannot());
    for values in ["service", "pod"] {
        let set = object(values, "DaemonSet");
        let update = &set["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!((&update["maxUnavailable"], &update["maxSurge"]), (&1.into(), &0.into()), "{values}");
        assert!(set["spec"]["minReadySeconds"].as_u64() > Some(0), "{values}");
        assert!(set["spec"]["template"]["spec"]["containers"][0]["readinessProbe"].is_object(), "{values}");
    }
}

#[test]
fn kinds_of_the_operator_are_made_only_where_the_cluster_has_them() {
    require!(chart::cannot());
    let has = |text: &str| ["kind: PodMonitor", "kind: PrometheusRule"].map(|kind| text.contains(kind));
    assert_eq!(has(&chart::render("full", true)), [true, true]);
    assert_eq!(has(&chart::render("full", false)), [false, false]);
    assert_eq!(has(&chart::render("pod", true)), [false, false]);
}

#[test]
fn with_a_network_policy_only_whom_it_names_reaches_the_agent_and_only_on_its_port() {
    require!(chart::cannot());
    let policy = object("full", "NetworkPolicy");
    let spec = &policy["spec"];
    assert_eq!(spec["policyTypes"], serde_json::json!(["Ingress"]), "what the agent asks for is not limited");
    let labels = &object("full", "DaemonSet")["spec"]["template"]["metadata"]["labels"];
    for (name, value) in spec["podSelector"]["matchLabels"].as_object().expect("labels") {
        assert_eq!(&labels[name], value, "it is about the agent's pods");
    }
    let rules = spec["ingress"].as_array().expect("rules");
    assert_eq!(rules.len(), 1, "{rules:?}");
    assert_eq!(rules[0]["ports"], serde_json::json!([{ "port": 9180, "protocol": "TCP" }]));
    let from = &rules[0]["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"];
    assert_eq!(from, "monitoring");
    for other in ["service", "pod", "metrics"] {
        assert!(chart::objects(other, "NetworkPolicy").is_empty(), "{other}: not unless it is asked for");
    }
    let none = ["--set", "networkPolicy.from=null"];
    let out = chart::helm(&["template", "penstock", "--show-only", "templates/networkpolicy.yaml"], "full", &none);
    assert!(String::from_utf8_lossy(&out.stdout).contains("ingress: []"), "nobody, when nobody is named");
}

/// What Artifact Hub reads of a chart: <https://artifacthub.io/docs/topics/annotations/helm/>.
#[test]
fn artifact_hub_is_told_what_it_asks_for() {
    require!(chart::cannot());
    let chart = chart::parsed(&[chart::dir().join("Chart.yaml")]).remove(0).remove(0);
    let annotation = |name: &str| {
        let text = chart["annotations"][format!("artifacthub.io/{name}")].as_str();
        text.unwrap_or_else(|| panic!("artifacthub.io/{name} is not said")).to_owned()
    };
    assert_eq!(annotation("license"), "Apache-2.0");
    assert_eq!(annotation("category"), "storage");
    for flag in ["operator", "prerelease", "containsSecurityUpdates"] {
        assert!(["true", "false"].contains(&annotation(flag).as_str()), "{flag}");
    }
    let work = Workdir::new();
    let lists = ["changes", "links"].map(|name| {
        let path = work.join(name);
        fs::write(&path, annotation(name)).expect("room");
        path
    });
    let [changes, links] = chart::parsed(&lists).try_into().expect("two lists");
    let entries = |list: &[Value]| list[0].as_array().expect("a list").clone();
    for change in entries(&changes) {
        let kinds = ["added", "changed", "deprecated", "removed", "fixed", "security"].map(Value::from);
        assert!(kinds.contains(&change["kind"]) && change["description"].is_string(), "{change}");
    }
    for link in entries(&links) {
        assert!(
            link["name"].is_string() && link["url"].as_str().is_some_and(|url| url.starts_with("https://")),
            "{link}"
        );
    }
    assert!(chart["kubeVersion"].is_string() && chart["keywords"].as_array().is_some_and(|all| all.len() >= 3));
}
