"""What object stores' clients are told before anybody opens a file."""

import s3fs

import infra.storage  # noqa: F401  tells them


def test_file_on_s3_holds_five_mebibytes_and_64_are_read_at_once_and_listings_are_fresh():
    files = s3fs.S3FileSystem(anon=True, skip_instance_cache=True)
    assert files.default_block_size == 5 << 20
    assert files.config_kwargs == {"max_pool_connections": 64}
    assert not files.dircache.use_listings_cache
