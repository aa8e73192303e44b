"""The review page in a real browser, by keys pressed, up to the audit that reads its CSV."""

import csv
import json

import pytest
from playwright.sync_api import expect

from tests.browser import PHONE, start_browser, visit
from tests.outputs import label, make_image
from tlray.audit.draw import draw
from tlray.cli.commands import main
from tlray.config import AuditConfig

CLASSES = ["glass", "=HYPERLINK(1)", "</script><b>metal</b>"]
HOSTILE = ["<script>alert(1)<!--.png", 'qu"o,te.png', "new\nline.png", "=1+2.png", "\u202ea.png"]


@pytest.fixture(scope="module")
def browser():
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """100 rows of three classes, some with hostile names, ten without a picture."""
    folder = tmp_path_factory.mktemp("images")
    for index, name in enumerate([*HOSTILE, *(f"{index:03d}.png" for index in range(95))]):
        (folder / name).write_bytes(make_image((2 * index, 0, 0)))
    labels = label(tmp_path_factory.mktemp("out") / "labels", [folder], lambda row: (row % 10) // 4, CLASSES)
    for index in range(10):
        (folder / f"{index:03d}.png").write_bytes(b"no image")
    return labels


@pytest.fixture
def page_path(labels, tmp_path):
    """The page of a sample of 60 rows."""
    return make_page(labels, tmp_path / "audit", 60)


def make_page(labels, folder, rows):
    drawn = draw(AuditConfig(labels=str(labels), sample=rows, output=str(folder)))
    return folder / drawn.page.rpartition("/")[2]


def press(page, keys):
    for key in keys.split():
        page.keyboard.press(key)


def read_answers(page):
    return page.evaluate("Object.fromEntries(answered())")


def save(page, path):
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "sample.csv"
    download.value.save_as(path)
    return read_csv(path)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_answers_given_by_keys_survive_a_reload_and_are_measured(browser, labels, page_path, tmp_path):
    with visit(browser, page_path) as (page, said):
        press(page, ". . 1 2 3 ? . ArrowRight 2 / . . . . . . . . . . .")
        assert page.locator("#count").inner_text().startswith("20 of 60 reviewed")
        given = read_answers(page)
        page.reload()
        assert read_answers(page) == given
        assert page.locator("#bar").get_attribute("value") == "20"
        assert page.locator("#place").inner_text() == "8 of 60"  # the first row without an answer
        rows = save(page, tmp_path / "filled.csv")
        assert said == []
    typed = [row["correct_label"] for row in rows if row["correct_label"]]
    assert [row["correct_label"] for row in rows[:8]] == [".", ".", ".", "'=HYPERLINK(1)", CLASSES[2], "?", ".", ""]
    assert len(typed) == len(given) == 20
    answers = ["--answers", str(tmp_path / "filled.csv"), "--output", str(page_path.parent)]
    assert main(["audit", str(labels), *answers]) == 0
    told = json.loads((page_path.parent / "audit.json").read_text())
    assert told["reviewed"] == 20
    assert told["right"] == sum(answer == "." for answer in typed)
    assert told["none_of_them"] == 2


def test_the_saved_csv_is_the_form_with_answers(browser, page_path, tmp_path):
    form = read_csv(page_path.parent / "sample.csv")
    with visit(browser, page_path) as (page, _):
        press(page, "?")
        rows = save(page, tmp_path / "filled.csv")
    assert rows[0].pop("correct_label") == "?"
    form[0].pop("correct_label")
    assert rows == form


def test_undo_takes_back_an_answer_at_a_time(browser, page_path):
    with visit(browser, page_path) as (page, _):
        press(page, ". 2 ArrowRight .")
        press(page, "Backspace")
        assert len(read_answers(page)) == 2
        assert page.locator("#place").inner_text() == "4 of 60"
        press(page, "Control+z Control+z")
        assert read_answers(page) == {}
        assert page.locator("#place").inner_text() == "1 of 60"
        press(page, "Backspace")
        assert page.locator("#message").inner_text() == "There is nothing to undo."


def test_a_grid_is_walked_and_marked(browser, page_path):
    with visit(browser, page_path) as (page, said):
        press(page, "Enter")
        columns = page.evaluate("countColumns()")
        assert columns > 3
        press(page, "ArrowDown ArrowRight 3")
        assert page.locator("#place").inner_text() == f"{columns + 3} of 60"
        assert page.locator(".card").count() == 48
        assert page.locator(".card").nth(columns + 1).locator(".said").inner_text().endswith(CLASSES[2])
        page.locator(".card").nth(2).click()
        assert page.locator("#place").inner_text() == "3 of 60"
        page.click("#rest")
        assert len(read_answers(page)) == 48
        assert page.locator(".card").count() == 12
        press(page, "Backspace")
        assert len(read_answers(page)) == 1
        press(page, "PageDown Enter")
        assert page.locator("#picture").is_visible()
        assert said == []


def test_rows_are_filtered_and_ordered(browser, page_path):
    with visit(browser, page_path) as (page, _):
        press(page, ". . 2 ?")
        for state, rows in (("open", 56), ("done", 4), ("wrong", 2), ("none", 1), ("all", 60)):
            page.select_option("#state", state)
            assert page.evaluate("shown.length") == rows
        page.select_option("#label", "1")
        assert page.locator("#predicted").inner_text() == CLASSES[1]
        page.select_option("#state", "none")
        assert page.locator("#nothing").is_visible()
        press(page, ". ArrowRight Enter Space")  # nothing to answer
        assert len(read_answers(page)) == 4
        page.select_option("#state", "all")
        page.select_option("#order", "doubt")
        sure = page.evaluate("shown.map((number) => rows[number].probability)")
        assert sure == sorted(sure)


def test_a_half_filled_csv_is_read(browser, page_path, tmp_path):
    with visit(browser, page_path) as (page, _):
        press(page, ". . 2 3 ?")
        rows = save(page, tmp_path / "mine.csv")
        given = read_answers(page)
    rows[5]["correct_label"] = "glass "
    rows[6]["correct_label"] = "plastic"
    rows[0]["correct_label"] = "?"
    with (tmp_path / "other.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    with visit(browser, page_path) as (page, said):
        assert read_answers(page) == {}  # another browser
        press(page, ".")
        page.set_input_files("#csv", tmp_path / "other.csv")
        expect(page.locator("#message")).to_contain_text("Read 6")
        expected = {**given, rows[0]["row_id"]: -1, rows[5]["row_id"]: 0}
        assert read_answers(page) == expected
        told = page.locator("#message").inner_text()
        assert "1 replaced other answers; 1 lines have another row or no class" in told
        press(page, "Backspace")
        assert len(read_answers(page)) == 1
        (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
        page.set_input_files("#csv", tmp_path / "wrong.csv")
        expect(page.locator("#message")).to_contain_text("has no column")
        assert said == []


def test_a_dropped_csv_is_read(browser, page_path):
    with visit(browser, page_path) as (page, _):
        row = page.evaluate("rows[9].id")
        page.evaluate(
            """text => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([text], "half.csv"));
              document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
            }""",
            f"row_id,correct_label\r\n{row},.\r\n",
        )
        expect(page.locator("#count")).to_contain_text("1 of 60")
        assert list(read_answers(page)) == [str(row)]


def test_a_picture_is_enlarged_and_answered(browser, page_path):
    with visit(browser, page_path) as (page, _):
        press(page, "Space")
        assert page.locator("#zoom").is_visible()
        first = page.locator("#zoom img").get_attribute("src")
        press(page, ".")
        assert page.locator("#zoom img").get_attribute("src") != first
        assert len(read_answers(page)) == 1
        press(page, "Escape")
        assert not page.locator("#zoom").is_visible()


def test_a_row_without_a_picture_says_so(browser, page_path):
    with visit(browser, page_path) as (page, _):
        empty = page.evaluate("shown.filter((number) => findPicture(number) === null)")
        assert 1 <= len(empty) <= 10
        page.evaluate(f"at = {empty[0]}; draw()")
        assert page.locator("#picture img").is_hidden()
        said = page.evaluate("getComputedStyle(document.getElementById('picture'), '::after').content")
        assert "no picture" in said


def test_a_browser_that_keeps_nothing_is_told(browser, page_path):
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('off'); } })")
    page.goto(page_path.as_uri())
    press(page, ". .")
    assert page.locator("#kept").is_visible()
    assert len(read_answers(page)) == 2
    context.close()


def test_with_many_classes_names_are_typed(browser, tmp_path):
    names = [f"class {index:02d}" for index in range(60)]
    images = tmp_path / "images"
    images.mkdir()
    for index in range(20):
        (images / f"{index}.png").write_bytes(make_image((index, 0, 0)))
    output = label(tmp_path / "labels", [images], lambda row: 40 + row, names)
    with visit(browser, make_page(output, tmp_path / "audit", 20)) as (page, _):
        assert page.locator("#classes button").count() == 36
        assert page.locator("#classes button").last.inner_text().endswith("class 59")
        press(page, ",")
        page.keyboard.type("class 33")
        assert list(read_answers(page).values()) == [33]
        press(page, "z")
        assert list(read_answers(page).values()) == [33, 59]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("keys", ["", "Enter"])
def test_the_page_fits_a_phone(browser, page_path, scheme, keys):
    with visit(browser, page_path, PHONE, color_scheme=scheme, has_touch=True) as (page, said):
        press(page, keys)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        for name in ("#right", "#none", "#undo", "#save"):
            box = page.locator(name).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE[0]
            assert box["y"] + box["height"] <= PHONE[1]
            assert box["height"] >= 36
        page.tap("#right")
        assert len(read_answers(page)) == 1
        assert said == []


def test_pictures_out_of_sight_are_not_decoded(browser, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(200):
        (images / f"{index}.png").write_bytes(make_image((index, 0, 0)))
    output = label(tmp_path / "labels", [images], lambda row: row % 3, CLASSES)
    with visit(browser, make_page(output, tmp_path / "audit", 200)) as (page, _):
        assert page.locator("#picture img").is_visible()
        assert page.evaluate("[blocks.length, parsed.size]") == [5, 1]
