//! What does not fit together in `[gateway_api]`.

use super::{GOOD, checked};

fn messages(lines: &str) -> Vec<String> {
    match checked(&format!("{GOOD}\n[gateway_api]\nfrom = \"cluster\"\n{lines}")) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(|fault| fault.message.clone()).collect(),
    }
}

#[test]
fn keys_of_another_mode_are_errors() {
    for good in [
        "",
        "merge = true",
        "mode = \"pool\"\naddresses = [\"198.51.100.0/28\"]\nattach = \"eth0\"\nmerge = true",
        "mode = \"service\"\nload_balancer_class = \"metallb.io/metallb\"\nattach = \"freebind\"\nmerge = true",
        "mode = \"service\"\nload_balancer_class = \"internal-vip\"",
    ] {
        assert_eq!(messages(good), [] as [&str; 0], "{good}");
    }
    let class = "`load_balancer_class` without `mode = \"service\"`";
    for (bad, expected) in [
        ("attach = \"lo\"", "`attach` without `mode = \"pool\"` or `\"service\"`"),
        ("mode = \"pool\"", "`mode = \"pool\"` without `addresses`"),
        ("load_balancer_class = \"a\"", class),
        ("mode = \"pool\"\naddresses = [\"198.51.100.1\"]\nload_balancer_class = \"a\"", class),
        ("mode = \"service\"\nload_balancer_class = \"-a\"", "`-a` is not the class of a load balancer"),
    ] {
        assert_eq!(messages(bad), [expected], "{bad}");
    }
}
