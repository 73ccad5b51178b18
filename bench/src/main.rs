//! snisplice beside its peers, over real tools, in namespaces of its own.
fn main() {}
