//! ICMP errors about a spliced connection: somebody on one leg says something about a packet that came from the other.
