"""Which options are accepted, what they mean, and what the user reads when one is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostprep.errors import Invalid
from hostprep.options import (
    KNOWN,
    MAX_ID,
    Label,
    Mode,
    OnRemove,
    Options,
    Recurse,
    check_name,
    differences,
    from_podman,
    parse_id,
    parse_path,
)

CONTEXT = "system_u:object_r:container_file_t:s0"


def refused(**given: str) -> str:
    """What the user reads."""
    with pytest.raises(Invalid) as caught:
        Options.parse(given)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestAccepted:
    @pytest.mark.parametrize("key", ["uid", "gid"])
    @pytest.mark.parametrize("value", ["0", "1", "184", "65534", "4294967294"])
    def test_ids(self, key: str, value: str) -> None:
        """A host id from 0 to 4294967294 in plain digits is accepted."""
        assert getattr(Options.parse({key: value}), key) == int(value)

    @pytest.mark.parametrize(
        ("value", "bits"),
        [("00", 0), ("07", 7), ("0750", 0o750), ("00750", 0o750), ("02770", 0o2770), ("07777", 0o7777)],
    )
    def test_modes(self, value: str, bits: int) -> None:
        """A zero and one to four octal digits are a mode; setuid, setgid and sticky are kept."""
        assert Options.parse({"mode": value}).mode == bits

    @pytest.mark.parametrize(
        ("value", "full"),
        [
            (CONTEXT, CONTEXT),
            ("container_file_t", CONTEXT),
            ("container_file_t:s0:c1,c2", CONTEXT + ":c1,c2"),
            ("container_file_t:s0", CONTEXT),
            ("container_file_t:s0-s0:c0.c1023", CONTEXT + "-s0:c0.c1023"),
            ("user_u:role_r:t_t:s0:c3,c5.c7", "user_u:role_r:t_t:s0:c3,c5.c7"),
            ("none", "none"),
        ],
        ids=["full", "type", "type-and-categories", "type-and-level", "range", "full-with-categories", "none"],
    )
    def test_labels(self, value: str, full: str) -> None:
        """A full context, a type alone, type:level and the word none are labels."""
        assert str(Options.parse({"label": value}).label) == full

    @pytest.mark.parametrize("value", ["never", "mismatch", "always"])
    def test_recurse(self, value: str) -> None:
        """The three words of recurse are accepted."""
        assert Options.parse({"recurse": value}).recurse is Recurse(value)

    @pytest.mark.parametrize("value", ["delete", "retain"])
    def test_on_remove(self, value: str) -> None:
        """The two words of on_remove are accepted."""
        assert Options.parse({"on_remove": value}).on_remove is OnRemove(value)

    @pytest.mark.parametrize("value", ["/srv/db", "/srv/a b", "/srv/ä", "/srv/..data", "/a"])
    def test_paths(self, value: str) -> None:
        """An absolute, normalized path is accepted as it is."""
        assert Options.parse({"path": value}).path == value

    def test_nothing(self) -> None:
        """No options at all declare nothing."""
        assert Options.parse({}) == Options()

    def test_retain_with_path(self) -> None:
        """on_remove=retain does not contradict path."""
        assert Options.parse({"path": "/srv/db", "on_remove": "retain"}).retains


class TestDefaults:
    @pytest.mark.parametrize(
        ("given", "what"),
        [
            ({}, Recurse.MISMATCH),
            ({"path": "/srv/db"}, Recurse.NEVER),
            ({"path": "/srv/db", "recurse": "always"}, Recurse.ALWAYS),
            ({"recurse": "never"}, Recurse.NEVER),
        ],
        ids=["own", "path", "path-and-declared", "own-and-declared"],
    )
    def test_recurse(self, given: dict[str, str], what: Recurse) -> None:
        """Contents follow in hostprep's own directories, and are left alone under path."""
        assert Options.parse(given).recurses is what

    def test_on_remove(self) -> None:
        """Data is not retained unless that is asked."""
        assert not Options.parse({}).retains


class TestRefused:
    @pytest.mark.parametrize("key", ["uid", "gid"])
    @pytest.mark.parametrize(
        "value",
        [
            "-1",
            "+1",
            " 1",
            "1 ",
            "1\n",
            "01",
            "00",
            "1.5",
            "0x10",
            "1e3",
            "1_000",
            "٣",
            "１",
            "4294967295",
            "4294967296",
            "9" * 5000,
            "1:2",
        ],
        ids=[
            "negative",
            "signed",
            "leading-space",
            "trailing-space",
            "line-end",
            "leading-zero",
            "two-zeros",
            "fraction",
            "hexadecimal",
            "exponent",
            "underscore",
            "arabic-digit",
            "wide-digit",
            "minus-one",
            "past-32-bits",
            "very-long",
            "pair",
        ],
    )
    def test_ids(self, key: str, value: str) -> None:
        """What is no plain number of 32 bits is refused, with the option, the value and the range."""
        message = refused(**{key: value})
        assert message.startswith(f"option {key}: ")
        assert "0 to 4294967294" in message
        assert len(message) < 500

    @pytest.mark.parametrize("key", ["uid", "gid"])
    def test_names_instead_of_ids(self, key: str) -> None:
        """A user name is refused with the reason: host and image may give it different numbers."""
        message = refused(**{key: "mongodb"})
        assert '"mongodb"' in message
        assert "names are refused, since a name means different numbers on the host and in the image" in message

    @pytest.mark.parametrize(
        ("value", "hint"),
        [
            ("750", 'mode: "0750"'),
            ("488", 'mode: "0750"'),
            ("511", 'mode: "0777"'),
            ("504", 'mode: "0770"'),
            ("457", 'mode: "0711"'),
            ("456", 'mode: "0710"'),
            ("2770", 'mode: "02770"'),
            ("1533", 'write mode: "02775", if YAML made 1533 of an unquoted 02775; or write mode: "01533"'),
            ("1023", 'write mode: "01777"'),
            ("755", 'write mode: "0755", with the leading zero'),
            ("420", 'write mode: "0644"'),
            ("8", 'write mode: "0010"'),
        ],
    )
    def test_modes_that_yaml_made(self, value: str, hint: str) -> None:
        """A mode without its zero, or read by YAML as octal, is refused with what to write."""
        message = refused(mode=value)
        assert message.startswith(f'option mode: "{value}" is not ')
        assert hint in message

    def test_every_mode_that_yaml_made(self) -> None:
        """Every octal value of up to five digits that YAML has read as a number is computed back."""
        for mode in range(1, 0o10000):
            assert f'"0{mode:03o}"' in refused(mode=str(mode))

    @pytest.mark.parametrize(
        "value",
        ["0", "0o750", "u+rwx", "rwxr-x---", "0789", "010000", "077777", " 0750", "0750 ", "0750\n", "-0750", "٠٧٥٠"],
        ids=[
            "bare-zero",
            "python",
            "symbolic",
            "ls",
            "not-octal",
            "five-digits",
            "five-sevens",
            "leading-space",
            "trailing-space",
            "line-end",
            "negative",
            "arabic-digits",
        ],
    )
    def test_modes(self, value: str) -> None:
        """What is no zero with one to four octal digits is refused, with what is accepted."""
        message = refused(mode=value)
        assert message.startswith("option mode: ")
        assert "octal" in message
        assert 'mode: "0750"' in message

    @pytest.mark.parametrize(
        "value",
        [
            "a:b",
            "a:b:c",
            "a:b:c:d",
            "a:b:c:s0:d",
            "container_file_t:s",
            "container_file_t:s0:",
            "container_file_t:s0:c1,",
            "container_file_t:s0:x1",
            "none:s0x",
            "container file t",
            ":::",
            "u:r::s0",
            "container_file_t\n",
            "container_file_t:s0\0",
            "t" * 2000,
            "ünicode_t",
            "1_t",
        ],
    )
    def test_labels(self, value: str) -> None:
        """A label of another shape is refused, with the shapes that are accepted."""
        message = refused(label=value)
        assert message.startswith("option label: ")
        assert "user:role:type:level, a type, type:level, or none" in message

    def test_a_label_without_level(self) -> None:
        """Where only the level is missing the message completes the label."""
        assert "system_u:object_r:container_file_t:s0" in refused(label="system_u:object_r:container_file_t")

    @pytest.mark.parametrize(
        ("value", "hint"),
        [
            ("srv/db", "in full"),
            ("./db", "in full"),
            ("~/db", "in full"),
            ("/srv/../etc", "in full"),
            ("/srv/./db", "write it as /srv/db"),
            ("/srv//db", "write it as /srv/db"),
            ("//srv/db", "write it as /srv/db"),
            ("/srv/db/", "write it as /srv/db"),
            ("/", "root of the file system"),
            ("/srv/\0db", "in full"),
            ("/srv/db/..", "in full"),
        ],
    )
    def test_paths(self, value: str, hint: str) -> None:
        """A path that is relative or has another spelling is refused, with the right one; `..` may lead anywhere."""
        message = refused(path=value)
        assert message.startswith("option path: ")
        assert hint in message

    @pytest.mark.parametrize("value", ["/srv/\ud800", "/srv/\udcff", "/\ud800/db"], ids=["high", "byte", "above"])
    def test_paths_that_no_engine_could_open(self, value: str) -> None:
        """A path with half a surrogate pair, which JSON allows, names no file and is malformed."""
        assert "option path: " in refused(path=value)

    def test_a_component_too_long(self) -> None:
        """A path with a component over 255 bytes can never be opened, and is malformed."""
        assert "option path: " in refused(path="/srv/" + "x" * 256)

    def test_a_path_too_long(self) -> None:
        """A path that no mount(2) takes, over 4095 bytes, is malformed."""
        assert "option path: " in refused(path="/srv" + "/abcdefgh" * 500)

    @pytest.mark.parametrize(
        ("key", "value", "near"),
        [
            ("recurse", "allways", "always"),
            ("recurse", "true", "always"),
            ("recurse", "NO", "never"),
            ("on_remove", "retian", "retain"),
            ("on_remove", "keep", "retain"),
            ("on_remove", "purge", "delete"),
        ],
    )
    def test_words_show_the_nearest(self, key: str, value: str, near: str) -> None:
        """A mistyped word is answered with the accepted ones and the one that is nearest in spelling or meaning."""
        message = refused(**{key: value})
        assert f'"{value}"' in message
        assert f"did you mean {near}?" in message
        assert all(each in message for each in {"recurse": ["never", "mismatch"], "on_remove": ["delete"]}[key])

    def test_words_that_mean_nothing(self) -> None:
        """Where no accepted word is near, all are offered."""
        assert "write recurse=never or recurse=mismatch or recurse=always" in refused(recurse="17")
        assert "write on_remove=delete or on_remove=retain" in refused(on_remove="yes")

    @pytest.mark.parametrize("value", ["NEVER", "true", "yes", "never ", "1"])
    def test_words_are_exact(self, value: str) -> None:
        """Words are lower case and complete."""
        assert "is not never or mismatch or always" in refused(recurse=value)

    @pytest.mark.parametrize("key", KNOWN)
    def test_empty_values(self, key: str) -> None:
        """An empty value is malformed, not absent."""
        assert refused(**{key: ""}).startswith(f"option {key} is empty")

    @pytest.mark.parametrize(
        ("key", "near"),
        [("uuid", "uid"), ("UID", "uid"), ("recursive", "recurse"), ("on-remove", "on_remove"), ("modes", "mode")],
    )
    def test_unknown_options_show_the_nearest(self, key: str, near: str) -> None:
        """An unknown option is answered with the nearest known one."""
        message = refused(**{key: "1"})
        assert f'unknown option "{key}"' in message
        assert f"did you mean {near}?" in message

    def test_unknown_options_far_from_any(self) -> None:
        """Where no known option is near, all are named."""
        message = refused(nothing="10G")
        assert all(key in message for key in ("uid", "gid", "mode", "label", "path", "recurse", "on_remove"))

    @pytest.mark.parametrize(
        ("key", "hint"),
        [
            ("user", "give the number: uid"),
            ("owner", "give the numbers: uid and gid"),
            ("group", "give the number: gid"),
            ("permissions", "mode does that"),
            ("chown", "give the numbers: uid and gid"),
            ("bind", "path does that"),
            ("device", "mount the disk on the host, and give its directory by path"),
            ("type", "hostprep mounts nothing"),
            ("o", "hostprep mounts nothing"),
            ("size", "hostprep limits no size"),
        ],
    )
    def test_words_of_other_drivers(self, key: str, hint: str) -> None:
        """An option of another driver is answered with the one that does it, or with what hostprep does instead."""
        message = refused(**{key: "1"})
        assert f'unknown option "{key}" (' in message
        assert hint in message

    def test_a_value_with_control_characters(self) -> None:
        """A value is shown with its control characters escaped."""
        assert '"1\\n\\x1b[31m"' in refused(uid="1\n\x1b[31m")

    def test_deleting_what_was_given_by_path(self) -> None:
        """on_remove=delete contradicts path: that directory is never removed."""
        message = refused(path="/srv/db", on_remove="delete")
        assert "on_remove=delete" in message
        assert "path" in message


class TestPodman:
    """`o`, `UID` and `GID`, as Podman's clients and Quadlets say uid and gid."""

    @pytest.mark.parametrize(
        "given",
        [
            {"GID": "998", "UID": "184", "o": "uid=184,gid=998"},
            {"o": "uid=184,gid=998", "uid": "184"},
            {"UID": "184", "gid": "998"},
        ],
    )
    def test_what_agrees(self, given: dict[str, str]) -> None:
        """Each is the option that hostprep knows; what else is given stays."""
        assert from_podman({**given, "mode": "0750"}) == {"uid": "184", "gid": "998", "mode": "0750"}

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            ({"UID": "184", "uid": "185"}, "option uid is 185, and UID says 184"),
            ({"o": "uid=184,gid=998", "GID": "999"}, "option gid is 999, and o=gid=998 says 998"),
            ({"o": "uid=184,size=10G"}, 'option o: "size=10G" is neither'),
            ({"o": "bind"}, "hostprep mounts nothing"),
            ({"o": ""}, "is neither uid=NUMBER nor gid=NUMBER"),
        ],
    )
    def test_what_does_not(self, given: dict[str, str], why: str) -> None:
        """What contradicts, or says something else, is refused."""
        with pytest.raises(Invalid) as caught:
            from_podman(given)
        assert why in str(caught.value)


class TestMountpoint:
    """`mountpoint`, as local-persist's users write `path`."""

    def test_another_name_of_path(self) -> None:
        """What is given as mountpoint is the path."""
        assert Options.parse({"mountpoint": "/srv/db"}) == Options.parse({"path": "/srv/db"})

    def test_both(self) -> None:
        """Both names at once are refused, equal or not."""
        for path in ("/srv/db", "/srv/other"):
            message = refused(mountpoint="/srv/db", path=path)
            assert "path and mountpoint are one option" in message

    def test_as_strict_as_path(self) -> None:
        """It is parsed as path is, and a message names it as it was written."""
        for wrong in ("srv/db", "/srv/../etc", "/srv/db/", "/", "/srv/" + "x" * 256):
            assert refused(mountpoint=wrong).startswith("option mountpoint: ")
        assert "contradicts mountpoint" in refused(mountpoint="/srv/db", on_remove="delete")

    def test_compared(self) -> None:
        """A path under its two names is one path, and a phrase about two names the key that was asked for."""
        assert differences({"mountpoint": "/srv/db"}, {"path": "/srv/db"}) == []
        assert differences({"path": "/srv/db"}, {"mountpoint": "/srv/db"}) == []
        assert differences({"path": "/srv/a"}, {"mountpoint": "/srv/b"}) == ["mountpoint is /srv/a, asked for /srv/b"]
        assert differences({"mountpoint": "/srv/a"}, {}) == ["mountpoint is /srv/a, asked for none"]


class TestEquality:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ({"mode": "0750"}, {"mode": "00750"}),
            ({"label": "container_file_t"}, {"label": CONTEXT}),
            ({"label": "container_file_t"}, {"label": "container_file_t:s0"}),
            ({"uid": "1", "gid": "2"}, {"gid": "2", "uid": "1"}),
        ],
        ids=["mode", "label", "label-level", "order"],
    )
    def test_two_spellings_of_one_value(self, old: dict[str, str], new: dict[str, str]) -> None:
        """Options are compared by value, not by spelling or order."""
        assert differences(old, new) == []

    @pytest.mark.parametrize(
        ("old", "new", "key"),
        [
            ({"uid": "1"}, {"uid": "2"}, "uid"),
            ({"uid": "1"}, {"uid": "1", "gid": "1"}, "gid"),
            ({"uid": "1", "gid": "1"}, {"uid": "1"}, "gid"),
            ({}, {"mode": "0755"}, "mode"),
            ({}, {"recurse": "mismatch"}, "recurse"),
            ({}, {"label": "none"}, "label"),
            ({}, {"on_remove": "delete"}, "on_remove"),
        ],
        ids=["value", "one-more", "one-less", "a-default", "a-default-word", "none-is-a-label", "the-default-removal"],
    )
    def test_the_same_keys(self, old: dict[str, str], new: dict[str, str], key: str) -> None:
        """A key on one side only makes them different, its default value too; the phrase names it."""
        (phrase,) = differences(old, new)
        assert phrase.startswith(f"{key} is ")


class TestNames:
    @pytest.mark.parametrize("name", ["a", "0", "mongo", "a.b_c-d", "a..", "A" * 255, "0" * 64])
    def test_accepted(self, name: str) -> None:
        """Letters, digits and, after the first, _ . - are a name, up to 255 bytes."""
        assert check_name(name) == name

    @pytest.mark.parametrize(
        "name", ["", ".", "..", ".a", "-a", "_a", "a/b", "/", "a b", "a\n", "a\0", "ä", "a" * 256, "lost+found", "a:b"]
    )
    def test_refused(self, name: str) -> None:
        """Anything else is refused in one line."""
        with pytest.raises(Invalid, match="is not valid") as caught:
            check_name(name)
        assert str(caught.value).isprintable()


class TestArithmetic:
    @given(st.integers(0, 0o7777))
    def test_a_mode_is_printed_as_it_is_read(self, bits: int) -> None:
        """Every mode reads back from what it prints."""
        assert Mode.parse(str(Mode(bits))) == bits

    @given(st.integers(0, MAX_ID))
    def test_every_id_is_read(self, number: int) -> None:
        """Every 32-bit id but (uid_t) -1 is accepted."""
        assert parse_id("uid", str(number)) == number

    @given(st.text())
    def test_no_text_is_taken_for_a_wrong_id(self, text: str) -> None:
        """Whatever is accepted as an id is the number in its only spelling."""
        try:
            number = parse_id("uid", text)
        except Invalid:
            return
        assert str(number) == text
        assert 0 <= number <= MAX_ID

    @given(st.text(alphabet="/.ab\0", max_size=12))
    def test_a_path_has_one_spelling(self, text: str) -> None:
        """Whatever is accepted as a path has no empty, `.` or `..` component."""
        try:
            path = parse_path(text)
        except Invalid:
            return
        assert path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/")[1:])

    @given(st.text(alphabet="abst0:_,.-c", max_size=20))
    def test_a_label_is_printed_as_it_is_read(self, text: str) -> None:
        """Every label that is accepted reads back from its full form."""
        try:
            label = Label.parse(text)
        except Invalid:
            return
        assert Label.parse(str(label)) == label

    @given(st.dictionaries(st.text(max_size=12), st.text(max_size=12)))
    def test_any_options_are_accepted_or_refused(self, given: dict[str, str]) -> None:
        """No set of strings leads to anything but options or a refusal in one printable line."""
        try:
            Options.parse(given)
        except Invalid as exc:
            assert str(exc).isprintable()


class TestImage:
    @pytest.mark.parametrize(
        "name",
        [
            "mongo",
            "mongo:7",
            "library/mongo",
            "a/b/c-d__e.f:V_1.0-x",
            "127.0.0.1:5000/team/mongo:7",
            "Registry.Example:443/mongo",
            "mongo@sha256:" + "0" * 64,
            "mongo:7@sha256:" + "0" * 64,
            "sha256:" + "0" * 64,
            "0123456789ab",
        ],
    )
    def test_names(self, name: str) -> None:
        """What an engine takes for the name or the id of an image is accepted."""
        assert Options.parse({"image": name}).image == name

    @pytest.mark.parametrize(
        "name",
        [
            "Mongo",
            "mongo:",
            ":7",
            "mongo:7:8",
            "../info",
            "a/../b",
            "a//b",
            "/mongo",
            "mongo/",
            "mongo json?x=y",
            "mongo?x",
            "mongo#x",
            "mongo%2f",
            "mongo\n",
            "-mongo",
            "m\u00f6ngo",
            "mongo@sha256:12",
            "a" * 513,
            "tcp://host/mongo",
        ],
    )
    def test_no_names(self, name: str) -> None:
        """Anything else is refused, in printable words: it would be part of a request's path."""
        message = refused(image=name)
        assert "option image" in message
        assert message.isprintable()

    def test_a_name_in_capitals(self) -> None:
        """A name that is right but for its case is told in lower case."""
        assert "lower case: mongo:7" in refused(image="Mongo:7")

    def test_a_name_that_takes_long(self) -> None:
        """The longest names are refused as soon as any."""
        for name in ("a" * 511 + "!", "a-" * 255 + "!", "a." * 255, "a/" * 255, "a_" * 255 + "!"):
            refused(image=name)

    def test_at(self) -> None:
        """`at` is a path in the image, in the one spelling it has."""
        assert Options.parse({"image": "mongo", "at": "/data/db"}).at == "/data/db"
        for path in ("data", "/data/", "/a/../b", "//data", "/a\0"):
            assert "option at" in refused(image="mongo", at=path)
        assert "image's root" in refused(image="mongo", at="/")

    def test_at_alone(self) -> None:
        """`at` without `image` is refused."""
        assert "give image" in refused(at="/data")
