#!/usr/bin/env python3
"""Checks a bundle of `tailwater ledger export --with-proofs` with nothing but Python: verify.py BUNDLE.tar [PUBLIC-KEY]

Some sixty lines, written from the standards and not from tailwater: RFC 6962 (the tree and its proofs), C2SP signed-note and
tlog-checkpoint (the signed head), RFC 8032 (Ed25519). Exits 0 and says `sound`, or says what is wrong and exits 1."""
import base64, hashlib, json, sys, tarfile

decode = base64.b64decode
def need(holds, otherwise):
    if not holds:
        raise ValueError(otherwise)
sha = lambda *parts: hashlib.sha256(b"".join(parts)).digest()
node = lambda left, right: sha(b"\x01", left, right)

# The tree, as the roots of its complete subtrees, largest first.
def append(frontier, size, leaf):
    while size & 1:
        leaf, size = node(frontier.pop(), leaf), size >> 1
    frontier.append(leaf)

def head(frontier):
    root = frontier[-1]
    for left in reversed(frontier[:-1]):
        root = node(left, root)
    return root

# Both roots that a consistency proof from `old` to `new` entries leads to (RFC 6962, 2.1.2, read from its end).
def roots(old, new, proof, known):
    if old == new:
        return (known or proof.pop(),) * 2
    split, side = 1 << (new - 1).bit_length() - 1, proof.pop()
    if old <= split:
        before, after = roots(old, split, proof, known)
        return before, node(after, side)
    return tuple(node(side, root) for root in roots(old - split, new - split, proof, None))

# Ed25519.
P, Q = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
def plus(a, b):
    k = D * a[0] * b[0] * a[1] * b[1]
    return (a[0] * b[1] + b[0] * a[1]) * pow(1 + k, -1, P) % P, (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, -1, P) % P
def times(n, point):
    return (0, 1) if n == 0 else plus(times(n - 1, point), point) if n & 1 else times(n >> 1, plus(point, point))
def point(data):
    y, odd = int.from_bytes(data, "little") & 2**255 - 1, data[31] >> 7
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if (x * x - square) % P == 0 else x * pow(2, (P - 1) // 4, P) % P
    need((x * x - square) % P == 0, "TAMPERED: not a point of the curve")
    return (x if x & 1 == odd else P - x), y
def is_signed(key, text, signature):
    s, k = int.from_bytes(signature[32:], "little"), hashlib.sha512(signature[:32] + key + text).digest()
    base = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    return s < Q and times(s, base) == plus(point(signature[:32]), times(int.from_bytes(k, "little") % Q, point(key)))

def verify(path, key=None):
    bundle = tarfile.open(path)
    need(len(bundle.getnames()) == len(set(bundle.getnames())), "TAMPERED: a file is in it twice")
    proof = json.load(bundle.extractfile("proof.json"))
    first, last, size, root = proof["first"], proof["last"], proof["tree_size"], decode(proof["root"])
    frontier, seq = [decode(hash) for hash in proof["left"]], first
    need(len(frontier) == bin(first - 1).count("1"), "TAMPERED: not what comes before the first entry")
    for line in bundle.extractfile("entries.jsonl"):
        need(json.loads(line)["seq"] == seq, f"TAMPERED: where entry {seq} should be stands another")
        append(frontier, seq - 1, sha(b"\x00", line.rstrip(b"\n")))
        seq += 1
    need(seq == last + 1, f"INCOMPLETE: entries {seq} to {last} are missing")
    made, path = head(frontier), [decode(hash) for hash in proof["consistency"]]
    need(roots(last, size, path, made) == (made, root) and not path, "TAMPERED: not the entries of this ledger")
    if key:
        name, key_id, public = key.strip().split("+", 2)
        text, signatures = bundle.extractfile("checkpoint").read().decode().split("\n\n")
        need(text.split("\n") == [name, str(size), proof["root"]], "TAMPERED: the checkpoint is of another tree")
        ours = [decode(line.split()[2]) for line in signatures.split("\n") if line.split()[1:2] == [name]]
        need(any(s[:4].hex() == key_id and is_signed(decode(public)[1:], (text + "\n").encode(), s[4:]) for s in ours), "TAMPERED: not signed")
    print(f"sound: entries {first} to {last} of {size}, " + (f"signed by {name}" if key else "signature not looked at"))

if __name__ == "__main__":
    try:
        verify(*sys.argv[1:3])
    except (IndexError, KeyError, ValueError) as wrong:
        sys.exit(str(wrong) or repr(wrong))
