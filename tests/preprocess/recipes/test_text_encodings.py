"""Suggestions for the encoding of a file: right, or none."""

from __future__ import annotations

import pytest

from preprocess.recipes.text_encodings import suggest_encoding

RUSSIAN = (
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. Всё смешалось в доме "
    "Облонских. Жена узнала, что муж был в связи с бывшею в их доме француженкою-гувернанткой, и объявила мужу, что не "
    "может жить с ним в одном доме. "
)
FRENCH = (
    "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient si vite "
    "que je n'avais pas le temps de me dire : « Je m'endors. » Et, une demi-heure après, la pensée qu'il était temps "
    "de chercher le sommeil m'éveillait ; je voulais poser le volume que je croyais avoir encore dans les mains. "
)
GERMAN = (
    "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich in seinem Bett zu einem ungeheueren "
    "Ungeziefer verwandelt. Er lag auf seinem panzerartig harten Rücken und sah, wenn er den Kopf ein wenig hob, "
    "seinen gewölbten, braunen, von bogenförmigen Versteifungen geteilten Bauch, auf dessen Höhe sich die Bettdecke, "
    "zum gänzlichen Niedergleiten bereit, kaum noch erhalten konnte. "
)
POLISH = (
    "Litwo! Ojczyzno moja! ty jesteś jak zdrowie. Ile cię trzeba cenić, ten tylko się dowie, kto cię stracił. Dziś "
    "piękność twą w całej ozdobie widzę i opisuję, bo tęsknię po tobie. Panno święta, co Jasnej bronisz Częstochowy "
    "i w Ostrej świecisz Bramie! Ty, co gród zamkowy Nowogródzki ochraniasz z jego wiernym ludem! Jak mnie dziecko do "
    "zdrowia powróciłaś cudem, gdy od płaczącej matki pod Twoją opiekę ofiarowany, martwą podniosłem powiekę i zaraz "
    "mogłem pieszo do Twych świątyń progu iść za wrócone życie podziękować Bogu, tak nas powrócisz cudem na Ojczyzny "
    "łono. Tymczasem przenoś moją duszę utęsknioną do tych pagórków leśnych, do tych łąk zielonych. "
)
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所でニャーニャー泣いて"
    "いた事だけは記憶している。吾輩はここで始めて人間というものを見た。"
)
CHINESE = (
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。汉朝自高祖斩白蛇而起义，"
    "一统天下，后来光武中兴，传至献帝，遂分为三国。"
)
TRADITIONAL = (
    "話說天下大勢，分久必合，合久必分。周末七國分爭，并入于秦。及秦滅之後，楚、漢分爭，又并入於漢。漢朝自高祖斬白蛇而起義，"
    "一統天下，後來光武中興，傳至獻帝，遂分為三國。"
)
KOREAN = (
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 부여받았으며 "
    "서로 형제애의 정신으로 행동하여야 한다. "
)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (RUSSIAN, "koi8-r"), (RUSSIAN, "cp1251"), (RUSSIAN, "cp866"), (FRENCH, "latin-1"), (FRENCH, "cp1252"),
        (GERMAN, "cp1252"), (POLISH, "cp1250"), (JAPANESE, "shift_jis"), (JAPANESE, "euc_jp"), (CHINESE, "gb18030"),
        (TRADITIONAL, "big5"), (KOREAN, "euc_kr"),
    ],
)  # fmt: skip
def test_suggested_encoding_gives_the_text(text: str, encoding: str) -> None:
    # The encoding of a short text may be clear or not. A long head may end within a character.
    for num_bytes in (60, 200, 5_001):
        data = (text * 60).encode(encoding)[:num_bytes]
        data = data if num_bytes > 5_000 else data.decode(encoding, "ignore").encode(encoding)
        suggestion = suggest_encoding(data)
        if "perhaps" in suggestion or num_bytes > 5_000:
            name = suggestion.removeprefix("perhaps --encoding ")
            assert data.decode(name, "ignore") == data.decode(encoding, "ignore"), (num_bytes, suggestion)


@pytest.mark.parametrize("data", [b"caf\xe9", b"good \xff bad" * 9, "Él comió".encode("cp1252"), b"\xff\xfe\x81" * 9])
def test_encoding_of_a_few_characters_is_said_to_be_unclear(data: bytes) -> None:
    assert suggest_encoding(data) == "with --encoding NAME (its text does not show which it is)"
